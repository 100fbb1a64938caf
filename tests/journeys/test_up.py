"""`sinas up` as its users meet it: the first start, what it leaves on disk, stopping, starting again, refusing."""

import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.live import Live, free_port, running, sinas, start, stop

CODE = re.compile(rb"\b(\d{6})\b")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A Sinas that these tests may stop and start again."""
    live = start(tmp_path_factory.mktemp("up") / "data", free_port())
    yield live
    stop(live)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_first_start_makes_keys_and_an_administrator_and_says_how_to_get_in(own: Live) -> None:
    assert mode(own.data) == 0o700
    for name in ("admin-key", "secrets/SECRET_KEY", "secrets/ENCRYPTION_KEY"):
        assert mode(own.data / name) == 0o600
    with own.client() as client:
        me = client.get("/auth/me").json()
    assert (me["email"], me["roles"]) == ("admin@example.com", ["Admins"])
    said = own.log.read_text()
    assert f"http://localhost:{own.port}" in said
    assert str(own.data / "admin-key") in said
    assert "admin@example.com" in said


def test_without_smtp_the_login_code_is_a_file_and_in_the_log(own: Live) -> None:
    with httpx2.Client(base_url=own.url, timeout=60) as client:
        session = client.post("/auth/login", json={"email": "admin@example.com"}).json()["session_id"]
        until = time.monotonic() + 60
        while not (mails := sorted((own.data / "outbox").glob("*.eml"))):
            assert time.monotonic() < until
            time.sleep(0.05)
        found = CODE.search(mails[-1].read_bytes().split(b"\n\n", 1)[1])
        assert found and mode(mails[-1]) == 0o600
        code = found[1].decode()
        while code not in own.log.read_text():  # where it comes a little later
            assert time.monotonic() < until
            time.sleep(0.05)
        tokens = client.post("/auth/verify-otp", json={"session_id": session, "otp_code": code}).json()
        bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
        assert client.get("/auth/me", headers=bearer).json()["email"] == "admin@example.com"


def test_a_second_up_on_the_same_directory_is_refused_with_the_reason(own: Live) -> None:
    refused = sinas("up", "--port", str(free_port()), environment=own.environment)
    assert refused.returncode == 1
    assert str(own.process.pid) in refused.stderr
    assert "already runs" in refused.stderr


def test_a_taken_port_is_named(own: Live, tmp_path: Path) -> None:
    refused = sinas("up", environment={**own.environment, "SINAS_DATA_DIR": str(tmp_path / "other")})
    assert refused.returncode == 1
    assert f"Port {own.port} is already in use" in refused.stderr


def test_wrong_settings_are_all_named(own: Live) -> None:
    refused = sinas("up", environment={**own.environment, "PORT": "http", "OTP_MAX_ATTEMPTS": "0"})
    assert refused.returncode == 2
    assert "PORT" in refused.stderr
    assert "OTP_MAX_ATTEMPTS" in refused.stderr


def test_doctor_finds_nothing_missing_where_it_runs(own: Live) -> None:
    found = sinas("doctor", environment=own.environment)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "sandbox" in found.stdout


def test_ctrl_c_stops_in_order_and_the_next_start_has_everything(own: Live) -> None:
    with own.client() as client:
        client.post("/api/v1/agents", json={"name": "kept"})
    key = own.key
    assert stop(own) == 0
    with pytest.raises(httpx2.HTTPError):
        httpx2.get(f"{own.url}/health", timeout=2)
    again = start(own.data, own.port)
    try:
        assert again.key == key
        with again.client() as client:
            assert client.get("/api/v1/agents/default/kept").status_code == 200
        assert "recovering" not in again.log.read_text()
    finally:
        stopped = sinas("down", environment=again.environment)
        assert (stopped.returncode, again.process.wait(30)) == (0, 0), stopped.stderr
    assert "[warning" not in again.log.read_text()
    nothing = sinas("down", environment=again.environment)
    assert (nothing.returncode, nothing.stdout[:12]) == (0, "nothing runs")


def test_port_and_administrator_are_settings(tmp_path: Path) -> None:
    with running(tmp_path / "data", SUPERADMIN_EMAIL="chief@example.org", UVICORN_WORKERS="2") as live:
        with live.client() as client:
            assert client.get("/auth/me").json()["email"] == "chief@example.org"
        with socket.create_connection(("127.0.0.1", live.port), timeout=5):
            assert live.log.read_text().count("api-") >= 2
