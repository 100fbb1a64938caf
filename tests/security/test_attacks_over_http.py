"""The same attacks, sent as functions through the public API of a running Sinas: they fail there too."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.live import Live
from tests.security.sandbox_attacks import Attack, Host, attacks, bait

ATTACKS = {attack.name: attack for attack in attacks(Host(1, "x", Path("/x"), 2)) if not attack.needs}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with bait(tmp_path_factory.mktemp("bait")) as made:
        yield made


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[httpx2.Client]:
    with live.client() as made:
        yield made


def send(client: httpx2.Client, name: str, attack: Attack) -> dict[str, object]:
    """What a caller of the API sees of the attack."""
    body = {"namespace": "attacks", "name": name, "code": attack.code, "input_schema": {}, "output_schema": {}}
    made = client.post("/api/v1/functions", json=body)
    if made.status_code == 400:
        made = client.put(f"/api/v1/functions/attacks/{name}", json=body)
    assert made.is_success, made.text
    called = client.post(
        f"/functions/attacks/{name}/execute", json={"input": {}, "timeout": max(1, round(attack.wall_seconds))}
    )
    assert called.status_code == 200, called.text
    answer = called.json()
    seen = client.get(f"/executions/{answer['execution_id']}").json()
    return {**answer, "stdout": seen["stdout"], "stderr": seen["stderr"]}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_fails(client: httpx2.Client, host: Host, name: str) -> None:
    attack = {found.name: found for found in attacks(host)}[name]
    slug = "attack_" + "".join(c if c.isalnum() else "_" for c in name)
    answer = send(client, slug, attack)
    assert attack.holds(answer), f"{name}: {answer}"


def test_neighbours_go_on_working(client: httpx2.Client) -> None:
    attack = Attack("echo", "def handler(input_data, context):\n    return 'fine'\n", lambda answer: True)
    assert send(client, "neighbour", attack)["result"] == "fine"
