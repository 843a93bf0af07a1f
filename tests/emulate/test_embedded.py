from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import paramiko
import pytest

from tests.support.servers import address_of, needs_sshd
from toolkit.device.ssh.client import SshTransport
from toolkit.emulate import EmbeddedServer, sshd as sshd_module, start_loopback
from toolkit.errors import HostUnreachable, RemoteCommandFailed


@pytest.fixture
def sftp(embedded: EmbeddedServer) -> Iterator[paramiko.SFTPClient]:
    with closing(SshTransport(embedded)) as transport:
        yield transport._files()


def test_home_is_the_root(embedded: EmbeddedServer) -> None:
    with closing(SshTransport(embedded)) as transport:
        process = transport.start(["sh", "-c", "echo $HOME; pwd"])
        assert list(process.lines()) == [str(embedded.root).encode()] * 2


def test_private_files_are_private_and_removed(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "root") as server:
        files = list(server.identity_file.parent.iterdir())
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert stat.S_IMODE(server.identity_file.parent.stat().st_mode) == 0o700
    assert not server.identity_file.parent.exists()


def test_commands_end_with_their_connection(embedded: EmbeddedServer) -> None:
    transport = SshTransport(embedded)
    process = transport.start(["sh", "-c", "echo $$; exec sleep 60"])
    pid = int(next(process.lines()))
    transport.close()
    deadline = time.monotonic() + 3
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_a_stopped_server_is_gone(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "root") as server:
        transport = SshTransport(server)
        server.kill()
        with pytest.raises(HostUnreachable):
            list(transport.start(["sleep", "60"]).lines())
        with pytest.raises(HostUnreachable, match="refused"):
            SshTransport(server)
        transport.close()


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "link/outside", "a/../../outside"])
def test_sftp_stays_inside_the_root(embedded: EmbeddedServer, sftp: paramiko.SFTPClient, path: str) -> None:
    link = embedded.root / "link"
    if not link.is_symlink():
        link.symlink_to(embedded.root.parent)
    for attempt in (
        lambda: sftp.open(path, "w"),
        lambda: sftp.stat(path),
        lambda: sftp.mkdir(path),
        lambda: sftp.remove(path),
        lambda: sftp.posix_rename("link", path),
    ):
        with pytest.raises(PermissionError):
            attempt()


def test_sftp_operations(embedded: EmbeddedServer, sftp: paramiko.SFTPClient) -> None:
    sftp.mkdir("ops", 0o700)
    with sftp.open("ops/file", "w") as file:
        file.write(b"one two three")
        file.truncate(7)
    with sftp.open("ops/file", "a") as file:
        file.write(b"!")
    with sftp.open(f"{embedded.root}/ops/file", "r+") as file:
        file.seek(4)
        file.write(b"TWO")
        file.seek(0)
        assert file.read() == b"one TWO!"
        assert file.stat().st_size == 8
    assert sftp.normalize(".") == str(embedded.root)
    with pytest.raises(OSError):
        sftp.symlink("file", "ops/link")
    sftp.rename("ops/file", "ops/other")
    assert sftp.listdir("ops") == ["other"]
    with sftp.open("ops/file", "w"), pytest.raises(OSError):
        sftp.rename("ops/other", "ops/file")
    sftp.remove("ops/file")
    sftp.remove("ops/other")
    sftp.rmdir("ops")
    with pytest.raises(FileNotFoundError):
        sftp.lstat("ops")


def test_without_statvfs_a_write_error_is_only_a_failure(embedded: EmbeddedServer, tmp_path: Path) -> None:
    (embedded.root / "folder").mkdir(exist_ok=True)
    (tmp_path / "source").touch()
    with closing(SshTransport(address_of(embedded))) as transport:
        assert transport._free_bytes(".") is None
        with pytest.raises(RemoteCommandFailed, match="writing folder failed: failure"):
            list(transport.put(tmp_path / "source", "folder"))


def test_loopback_without_sshd_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sshd_module, "find_sshd", lambda: None)
    with start_loopback(tmp_path / "root") as server:
        assert server.kind == "embedded (paramiko)"


@pytest.mark.parametrize(
    ("embedded_wanted", "kind"), [pytest.param(False, "OpenSSH ", marks=needs_sshd), (True, "embedded")]
)
def test_loopback_serves(tmp_path: Path, embedded_wanted: bool, kind: str) -> None:
    with start_loopback(tmp_path / "root", embedded=embedded_wanted) as server:
        assert server.kind.startswith(kind)
        with closing(SshTransport(server)) as transport:
            assert transport.start(["true"]).wait() == 0
