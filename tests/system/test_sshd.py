"""The SSH transport against a real OpenSSH server, where the embedded one can't stand in for it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.paths import REPO
from tests.support.servers import Address, address_of, needs_root, needs_sshd, small_disk
from toolkit.catalog.public_key import fingerprint
from toolkit.device.ssh.client import SshTransport
from toolkit.device.ssh.known_hosts import read_known_hosts
from toolkit.device.ssh.openssh import OpenSshTransport
from toolkit.device.ssh.trust import trust_host_key
from toolkit.emulate import PrivateSshd
from toolkit.emulate.sshd import write_key_pair
from toolkit.errors import AuthFailed, DeviceFull, HostUnreachable, RemoteCommandFailed

pytestmark = [needs_sshd, pytest.mark.usefixtures("config")]

Client = SshTransport | OpenSshTransport


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrivateSshd]:
    with PrivateSshd(tmp_path / "device") as running:
        yield running


@pytest.fixture(params=[SshTransport, OpenSshTransport])
def client(request: pytest.FixtureRequest) -> type[Client]:
    """The class of each SSH client in turn, which opens a connection to an address."""
    found: type[Client] = request.param
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(1 << 20) * 96)
    return path


def test_hash_of_what_arrives(client: type[Client], server: PrivateSshd, source: Path) -> None:
    with closing(client(address_of(server))) as transport:
        list(transport.put(source, str(server.root / "file")))
        process = transport.start(["sha256sum", str(server.root / "file")])
        (line,) = process.lines()
    assert line.split()[0].decode() == hashlib.sha256(source.read_bytes()).hexdigest()


def test_one_connection_starts_more_commands_than_max_sessions(client: type[Client], server: PrivateSshd) -> None:
    with closing(client(address_of(server))) as transport:
        for number in range(12):
            process = transport.start(["echo", str(number)])
            assert list(process.lines()) == [str(number).encode()]
            assert process.wait() == 0


def test_max_sessions_with_the_systems_ssh(tmp_path: Path) -> None:
    """OpenSSH's client reports the refusal; the paramiko client would open another connection."""
    with (
        PrivateSshd(tmp_path / "device", max_sessions=1) as server,
        closing(OpenSshTransport(address_of(server))) as transport,
    ):
        transport.size("x")  # a session counts once it is open
        with pytest.raises(RemoteCommandFailed, match="refuses another session") as caught:
            transport.start(["true"]).wait()
        assert "MaxSessions" in (caught.value.hint or "")


@pytest.mark.parametrize("program", ["/nonexistent/sftp-server", "echo the board says hello; sleep 60"])
def test_server_without_sftp(client: type[Client], tmp_path: Path, program: str) -> None:
    with PrivateSshd(tmp_path / "device", extra_config=f"Subsystem sftp {program}") as server:
        with (
            pytest.raises(RemoteCommandFailed, match="no SFTP session") as caught,
            closing(client(address_of(server))) as transport,
        ):
            transport.size("x")
        assert "openssh-sftp-server" in (caught.value.hint or "")


def test_too_many_keys(tmp_path: Path, config: Path) -> None:
    lines = []
    for number in range(4):
        write_key_pair(tmp_path / f"key{number}")
        lines.append(f"IdentityFile {tmp_path}/key{number}\n")
    config.write_text("".join(lines))
    with (
        PrivateSshd(tmp_path / "device", extra_config="MaxAuthTries 2") as server,
        pytest.raises(AuthFailed, match="hung up after") as caught,
    ):
        SshTransport(address_of(server, identity_file=None))
    assert "identity_file" in (caught.value.hint or "")


@pytest.fixture
def many_host_keys(tmp_path: Path) -> Iterator[tuple[PrivateSshd, dict[str, str]]]:
    """A server with three host keys, and its public keys by type."""
    lines, keys = [], {}
    for kind in ("ecdsa", "rsa"):
        file = tmp_path / f"host_{kind}"
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", file], check=True)
        lines.append(f"HostKey {file}")
        keys[kind] = " ".join(file.with_suffix(".pub").read_text().split()[:2])
    with PrivateSshd(tmp_path / "device", extra_config="\n".join(lines)) as server:
        keys["ed25519"] = server.known_hosts.read_text().split(" ", 1)[1].strip()
        yield server, keys


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_host_known_by_any_type_of_key(
    client: type[Client], many_host_keys: tuple[PrivateSshd, dict[str, str]], tmp_path: Path, kind: str
) -> None:
    server, keys = many_host_keys
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} {keys[kind]}\n")
    client(address_of(server, known_hosts=known)).close()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_any_host_key_can_be_trusted(
    many_host_keys: tuple[PrivateSshd, dict[str, str]], tmp_path: Path, kind: str
) -> None:
    server, keys = many_host_keys
    address = address_of(server, known_hosts=tmp_path / "known")
    reference = tmp_path / "reference"
    reference.write_text(f"pi {keys[kind]}\n")
    (key,) = read_known_hosts([reference])
    trust_host_key(address, fingerprint(key.blob))
    SshTransport(address).close()
    subprocess.run(ssh(address, "true"), check=True, timeout=20)


def ssh(address: Address, *command: str) -> list[str]:
    """The real client with the same keys, for comparison."""
    options = [f"-oUserKnownHostsFile={address.known_hosts}", f"-oIdentityFile={address.identity_file}"]
    options += [
        "-oBatchMode=yes",
        "-oStrictHostKeyChecking=yes",
        "-p",
        str(address.port),
        "-l",
        str(address.user),
    ]
    return ["ssh", "-F", "none", *options, address.host, *command]


@pytest.fixture
def aliased(server: PrivateSshd, config: Path, tmp_path: Path) -> Address:
    """The server as `board` of an included configuration file; the target has only the alias."""
    (tmp_path / "boards").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n"
        f"  IdentityFile {server.identity_file}\n  UserKnownHostsFile {server.known_hosts}\n"
    )
    config.write_text(f"Include {tmp_path}/boards\n")
    return Address("pi5", "board")


def test_alias_of_an_included_configuration(client: type[Client], aliased: Address) -> None:
    with closing(client(aliased)) as transport:
        assert transport.start(["exit", "4"]).wait() == 4


@pytest.mark.usefixtures("aliased")
def test_proxy_jump(client: type[Client], server: PrivateSshd, config: Path) -> None:
    inner = (
        f"Host inner\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n  ProxyJump board\n"
        f"  IdentityFile {server.identity_file}\n  UserKnownHostsFile {server.known_hosts}\n"
    )
    config.write_text(config.read_text() + inner)
    with closing(client(Address("pi5", "inner"))) as transport:
        process = transport.start(["sh", "-c", "echo $SSH_CONNECTION"])
        assert list(process.lines())
        assert process.wait() == 0


def test_power_loss_in_mid_command(client: type[Client], server: PrivateSshd) -> None:
    with closing(client(address_of(server))) as transport:
        process = transport.start(["sh", "-c", "echo ready; sleep 30"])
        lines = process.lines()
        next(lines)
        started = time.monotonic()
        server.kill()
        with pytest.raises(HostUnreachable, match="lost while a command ran"):
            next(lines)
        assert time.monotonic() - started < 5


def test_power_loss_in_mid_transfer(client: type[Client], server: PrivateSshd, source: Path) -> None:
    with closing(client(address_of(server))) as transport:
        steps = transport.put(source, str(server.root / "file"))
        done = sum(next(steps) for _ in range(60))
        started = time.monotonic()
        server.kill()
        with pytest.raises(HostUnreachable, match="lost while writing"):
            list(steps)
        assert time.monotonic() - started < 5
    written = (server.root / "file").read_bytes()
    assert 0 < done <= len(written) < source.stat().st_size
    assert source.read_bytes().startswith(written)


SILENT_LINK = """
import subprocess, sys, time
from pathlib import Path
from toolkit.errors import HostUnreachable
from toolkit.device.ssh import link as ssh_link
from toolkit.device.ssh.openssh import OpenSshTransport
from toolkit.device.ssh.client import SshTransport
from toolkit.emulate.sshd import PrivateSshd

ssh_link.LINK_TIMEOUT_S, ssh_link.KEEPALIVE_S = 2, 1
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
with PrivateSshd(Path(sys.argv[1])) as server:
    transport = {client}(server)
    lines = transport.start(["sh", "-c", "echo ready; sleep 60"]).lines()
    assert next(lines) == b"ready"
    started = time.monotonic()
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
    try:
        next(lines)
    except HostUnreachable as exc:
        print(time.monotonic() - started, exc)
"""


@pytest.mark.skipif(
    not shutil.which("unshare") or not shutil.which("ip") or os.geteuid() != 0,
    reason="a network that falls silent needs root, unshare and ip",
)
def test_silently_cut_link(client: type[Client], tmp_path: Path) -> None:
    script = SILENT_LINK.replace("{client}", client.__name__)
    command = ["unshare", "--net", sys.executable, "-c", script, str(tmp_path / "device")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPO)
    assert "lost while a command ran" in done.stdout, done.stderr
    assert float(done.stdout.split()[0]) < 10


@needs_root
def test_full_disk_is_found_before_writing(client: type[Client], server: PrivateSshd, source: Path) -> None:
    with (
        small_disk(server.root / "disk", "8m") as disk,
        closing(client(address_of(server))) as transport,
    ):
        with pytest.raises(DeviceFull, match=rf"disk full: needs 101 MB, 8\.39 MB free on {disk}$"):
            list(transport.put(source, str(disk / "file")))
        assert not (disk / "file").exists()


@needs_root
@pytest.mark.parametrize("missing", [1, 200_000, 30_000_000])
def test_disk_that_fills_up_while_writing(
    client: type[Client], server: PrivateSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    size = 8 << 20
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size + missing))
    monkeypatch.setattr(client, "_refuse_if_full", lambda *_: None)
    with (
        small_disk(server.root / "disk", "8m") as disk,
        closing(client(address_of(server))) as transport,
    ):
        with pytest.raises(DeviceFull, match="disk full: needs "):
            list(transport.put(source, str(disk / "file")))
        written = (disk / "file").read_bytes()
        assert len(written) <= size
        assert source.read_bytes().startswith(written)
        assert transport.start(["true"]).wait() == 0


def test_an_sshd_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(HostUnreachable, match="NoSuchOption"),
        PrivateSshd(tmp_path / "device", extra_config="NoSuchOption yes"),
    ):
        pass
