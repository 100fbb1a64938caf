"""The images of `deploy/`, built and run: a function through a platform in containers, and a sandbox in one."""

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.backends.sandbox.engine import docker
from tests.deploy.conftest import AS_COMPOSE, START_SECONDS, Deployment

CALL_BACK = """
import os, json, urllib.request
def handler(input_data, context):
    request = urllib.request.Request(
        os.environ["SINAS_URL"] + "/auth/me", headers={"Authorization": "Bearer " + context["access_token"]}
    )
    with urllib.request.urlopen(request) as answer:
        me = json.load(answer)
    return {"email": me["email"], "uid": os.getuid(), "seen": os.listdir("/tmp"), "keys": "SECRET_KEY" in os.environ}
"""
PURE = "import iniconfig\ndef handler(input_data, context):\n    return iniconfig.__name__\n"
UNCOMPILED = """
import importlib.util, pathlib
for file in pathlib.Path("/opt/sinas/lib").rglob("*.py"):
    compiled = pathlib.Path(importlib.util.cache_from_source(file))
    if not compiled.exists() or compiled.read_bytes()[8:12] != int(file.stat().st_mtime).to_bytes(4, "little"):
        print(file)
print("done")
"""
pytestmark = pytest.mark.timeout(1800)  # the first of them builds the image


def call(client: httpx2.Client, name: str, code: str) -> dict[str, Any]:
    body = {"name": name, "code": code, "input_schema": {}, "output_schema": {}}
    assert client.post("/api/v1/functions", json=body).status_code == 201
    answer = client.post(f"/functions/default/{name}/execute", json={"input": {}})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_function_runs_and_reaches_the_platform(deployed: tuple[Deployment, httpx2.Client]) -> None:
    _, client = deployed
    answer = call(client, "calls-back", CALL_BACK)
    assert answer["status"] == "success", answer
    uid = answer["result"].pop("uid")
    assert uid >= 1_000_000
    assert answer["result"] == {"email": "admin@example.com", "seen": [], "keys": False}
    [worker] = client.get("/api/v1/containers/stats").json()["workers"]
    assert worker["driver"] == "docker"


def test_an_approved_package_gets_from_the_workers_volume_into_sandboxes(
    deployed: tuple[Deployment, httpx2.Client],
) -> None:
    deployment, client = deployed
    assert client.post("/api/v1/dependencies", json={"package_name": "iniconfig"}).status_code == 200
    until = time.monotonic() + START_SECONDS
    while True:
        listed = {each["package_name"]: each for each in client.get("/api/v1/dependencies").json()}
        if listed["iniconfig"]["status"] == "ready":
            break
        assert time.monotonic() < until, (listed, deployment.logs("functions"))
        time.sleep(0.5)
    answer = call(client, "imports", PURE)
    assert (answer["status"], answer["result"]) == ("success", "iniconfig"), answer


def test_the_parts_run_as_an_ordinary_user_with_nothing_to_write_but_their_data(
    deployed: tuple[Deployment, httpx2.Client],
) -> None:
    deployment, _ = deployed
    for role in ("api", "scheduler", "functions"):
        name = f"{deployment.mark}-{role}"
        assert docker("exec", name, "id", "-u") == "10001"
        told = docker("exec", name, "sh", "-c", "touch /opt/sinas/x /etc/x 2>&1; ls -A /tmp")
        assert told.count("Read-only file system") == 2


def test_nothing_is_compiled_when_a_part_starts(server_image: str) -> None:
    """It could not be kept: the image is read-only, and each start would take seconds more."""
    told = docker("run", "--rm", *AS_COMPOSE, "--entrypoint", "python3", server_image, "-c", UNCOMPILED, timeout=600)
    assert told == "done"


def test_the_native_driver_in_a_container_falls_back_to_landlock(server_image: str, tmp_path: Path) -> None:
    """The engine's filter answers ENOSYS to clone3 and forbids namespaces."""
    function = tmp_path / "function.py"
    function.write_text("import os\ndef handler(i, c):\n    return [os.getpid() > 0, i]\n")
    tmp_path.chmod(0o755)
    given = ("--env", "SANDBOX_DRIVER=native", "--volume", f"{tmp_path}:/given:ro")
    command = ("run", "/given/function.py", "--input", '{"a": 1}')
    told = docker("run", "--rm", *AS_COMPOSE, *given, server_image, *command, timeout=600)
    assert "".join(told.split()).endswith('[true,{"a":1}]')
