"""The data directory, the doctor, and the measure of memory."""

import os
import socket
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from sinas_server.backends.embedded.datadir import DataDir, DataDirBusyError
from sinas_server.backends.embedded.doctor import diagnose
from sinas_server.backends.embedded.memory import pss_total
from sinas_server.backends.embedded.process import EmbeddedError


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    directory = DataDir(tmp_path / "data")
    directory.create()
    return directory


def test_secrets_are_made_once_and_private(data: DataDir) -> None:
    secret, key = data.ensure_secret("SECRET_KEY"), data.ensure_secret("ENCRYPTION_KEY")
    assert len(secret) == 64
    assert Fernet(key)
    again = DataDir(data.root)
    assert (again.ensure_secret("SECRET_KEY"), again.ensure_secret("ENCRYPTION_KEY")) == (secret, key)
    for path in data.secrets.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert len(list(data.secrets.iterdir())) == 2


def test_an_emptied_secret_is_not_silently_replaced(data: DataDir) -> None:
    data.ensure_secret("ENCRYPTION_KEY")
    (data.secrets / "ENCRYPTION_KEY").write_text("")
    with pytest.raises(EmbeddedError, match="is empty"):
        data.ensure_secret("ENCRYPTION_KEY")


def test_the_lock_is_exclusive_and_free_again_after(data: DataDir) -> None:
    assert data.holder() is None
    with data.lock():
        assert data.holder() == os.getpid()
        with pytest.raises(DataDirBusyError, match=f"process {os.getpid()} "), DataDir(data.root).lock():
            pass
    assert data.holder() is None
    with data.lock():
        pass


def test_a_data_directory_open_to_others_is_closed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    DataDir(tmp_path / "data").create()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_the_doctor_finds_this_machine_fit_and_names_a_taken_port(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "new" / "data")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        findings = {finding.name: finding for finding in diagnose(data, "127.0.0.1", port)}
    taken = findings.pop(f"Port {port}")
    assert not taken.ok
    assert "already in use" in taken.advice
    assert [finding for finding in findings.values() if not finding.ok] == []
    assert "18" in findings["Bundled PostgreSQL"].detail
    assert not data.root.parent.exists()


def test_the_doctor_explains_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    findings = {finding.name: finding for finding in diagnose(DataDir(tmp_path / "file" / "data"), "127.0.0.1", 0)}
    assert not findings["Data directory"].ok
    assert "SINAS_DATA_DIR" in findings["Data directory"].advice


def test_the_doctor_says_who_runs_there(data: DataDir) -> None:
    with data.lock():
        findings = {finding.name: finding for finding in diagnose(data, "127.0.0.1", 1)}
    assert str(os.getpid()) in findings["Data directory"].detail
    assert findings["Port 1"].ok


def test_pss_counts_this_process_and_the_servers_below_it(servers: tuple[str, str]) -> None:
    sizes = pss_total(os.getpid())
    names = [name.partition("[")[0] for name in sizes]
    assert names.count("postgres") >= 5
    assert "valkey-server" in names
    assert all(size > 0 for size in sizes.values())
