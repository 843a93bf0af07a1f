"""Settings of an SSH configuration that both clients must decide alike about, against a real server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.servers import needs_sshd
from tests.support.targets import write_target
from toolkit.catalog import load_target
from toolkit.catalog.public_key import fingerprint
from toolkit.cli import main
from toolkit.device import open_transport
from toolkit.device.ssh.client import SshTransport
from toolkit.device.ssh.known_hosts import read_known_hosts
from toolkit.device.ssh.openssh import OpenSshTransport
from toolkit.emulate import PrivateSshd
from toolkit.errors import HostKeyUnknown

pytestmark = [needs_sshd, pytest.mark.usefixtures("config")]

CLIENTS = ["ssh", "paramiko", "openssh"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    """A server with an ed25519 host key, which an authority's ed25519 key has certified."""
    folder = tmp_path_factory.mktemp("server")
    host, authority = folder / "host", folder / "authority"
    for path in (host, authority):
        keygen("-t", "ed25519", "-N", "", "-C", "", "-f", path)
    keygen("-s", authority, "-I", "host", "-h", "-n", "127.0.0.1", f"{host}.pub")
    extra = f"HostKey {host}\nHostCertificate {host}-cert.pub\nAcceptEnv EDGEPHI_*\nAcceptEnv HF_TOKEN"
    with PrivateSshd(folder / "device", extra_config=extra) as running:
        running.known_hosts.write_text(f"[127.0.0.1]:{running.port} {host.with_suffix('.pub').read_text()}")
        yield running


def keygen(*arguments: str | Path) -> None:
    subprocess.run(["ssh-keygen", "-q", *map(str, arguments)], check=True, capture_output=True)


def probe(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run `targets probe`; return its exit code and its words on stderr, on one line."""
    with pytest.raises(SystemExit) as caught:
        main(["targets", "probe", "pi5"])
    return int(caught.value.code or 0), " ".join(capsys.readouterr().err.split())


def revoked_list(server: PrivateSshd, folder: Path, kind: str) -> Path:
    """A file that says the server's key to be revoked: a list of keys, or a KRL."""
    public, found = folder / "revoked.pub", folder / "revoked"
    public.write_text(server.known_hosts.read_text().split(" ", 1)[1])
    if kind == "KRL":
        keygen("-k", "-f", found, public)
    else:
        found.write_text(public.read_text())
    return found


@pytest.mark.parametrize("kind", ["list", "KRL"])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_revoked_host_key(
    server: PrivateSshd, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], client: str, kind: str
) -> None:
    write_target(tmp_path, server, transport=client)
    revoked = revoked_list(server, tmp_path, kind)
    config.write_text(f"IdentityFile none\nRevokedHostKeys {revoked}\n")
    code, said = probe(capsys)
    if client == "paramiko":
        assert code == 3
        assert "error: target 'pi5': only OpenSSH's client heeds RevokedHostKeys of the SSH configuration" in said
        return
    assert code == 7
    assert f"error: pi5 (127.0.0.1:{server.port}): ssh refuses the host key: Host key ED25519-CERT SHA256:" in said
    assert f" revoked by file {revoked}" in said


@pytest.mark.parametrize("client", ["ssh", "openssh"])
def test_a_list_of_revoked_keys_that_cannot_be_read(
    server: PrivateSshd, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], client: str
) -> None:
    write_target(tmp_path, server, transport=client)
    config.write_text(f"IdentityFile none\nRevokedHostKeys {tmp_path}/none\n")
    code, said = probe(capsys)
    assert code == 7
    assert "ssh refuses the host key: Error checking host key ED25519-CERT SHA256:" in said


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "setting", ["StrictHostKeyChecking no", "StrictHostKeyChecking accept-new", "NoHostAuthenticationForLocalhost yes"]
)
def test_an_unknown_key_stays_unknown(
    server: PrivateSshd, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], client: str, setting: str
) -> None:
    known = tmp_path / "known"
    known.touch()
    write_target(tmp_path, server, transport=client, known_hosts=str(known))
    config.write_text(f"IdentityFile none\n{setting}\n")
    code, said = probe(capsys)
    assert code == 7
    assert f"error: pi5 (127.0.0.1:{server.port}): unknown host key ssh-ed25519 SHA256:" in said
    assert known.read_text() == ""


@pytest.mark.parametrize("client", ["ssh", "openssh"])
def test_a_key_revoked_in_a_file_with_a_blank_in_its_name(
    server: PrivateSshd, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], client: str
) -> None:
    line = server.known_hosts.read_text()
    (tmp_path / "my hosts").write_text(f"@revoked {line}")
    config.write_text(f'IdentityFile none\nUserKnownHostsFile "{tmp_path}/my hosts" {server.known_hosts}\n')
    write_target(tmp_path, server, transport=client, known_hosts=None)
    code, said = probe(capsys)
    assert code == 7 and "host key" in said


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("algorithms", "works"), [("ssh-ed25519", True), ("rsa-sha2-512", False)])
def test_the_algorithms_of_an_authority(
    server: PrivateSshd, config: Path, tmp_path: Path, client: str, algorithms: str, works: bool
) -> None:
    authority = server.root.with_name("authority.pub").read_text()
    (tmp_path / "certified").write_text(f"@cert-authority * {authority}")
    config.write_text(f"IdentityFile none\nCASignatureAlgorithms {algorithms}\n")
    write_target(tmp_path, server, transport=client, known_hosts=str(tmp_path / "certified"))
    if works:
        assert kind_of_client("pi5") is (OpenSshTransport if client == "openssh" else SshTransport)
        return
    with pytest.raises(HostKeyUnknown):
        kind_of_client("pi5")


def kind_of_client(name: str) -> type[object]:
    """Run a command on a target; return the class of the client that carried it."""
    with closing(open_transport(load_target(name))) as transport:
        assert transport.start(["true"]).wait() == 0
        return type(transport)


@pytest.mark.parametrize(
    ("setting", "client"),
    [
        ("AddressFamily inet", OpenSshTransport),
        ("BindAddress 127.0.0.1", OpenSshTransport),
        ("CheckHostIP yes", OpenSshTransport),
        ("RequiredRSASize 2048", OpenSshTransport),
        ("PubkeyAcceptedAlgorithms ssh-ed25519", OpenSshTransport),
        ("Ciphers chacha20-poly1305@openssh.com", OpenSshTransport),
        ("KexAlgorithms sntrup761x25519-sha512@openssh.com", OpenSshTransport),
        ("MACs umac-128-etm@openssh.com", OpenSshTransport),
        ("Ciphers aes256-ctr", SshTransport),
        ("KexAlgorithms ecdh-sha2-nistp256", SshTransport),
        ("SessionType none", SshTransport),
        ("StdinNull yes", SshTransport),
        ("Compression yes", SshTransport),
    ],
)
def test_settings_and_the_client_that_heeds_them(
    server: PrivateSshd, config: Path, tmp_path: Path, setting: str, client: type[object]
) -> None:
    config.write_text(f"IdentityFile none\n{setting}\n")
    write_target(tmp_path, server)
    assert kind_of_client("pi5") is client
    write_target(tmp_path, server, transport="openssh")
    assert kind_of_client("pi5") is OpenSshTransport


def test_the_ciphers_that_are_left(server: PrivateSshd, config: Path, tmp_path: Path) -> None:
    config.write_text("IdentityFile none\nCiphers aes192-ctr,aes256-ctr\nMACs hmac-sha2-512\n")
    write_target(tmp_path, server)
    with closing(SshTransport(load_target("pi5"))) as transport:
        used = transport._link.transport
        assert (used.remote_cipher, used.remote_mac) == ("aes192-ctr", "hmac-sha2-512")


def test_a_command_that_knows_the_host_key(server: PrivateSshd, config: Path, tmp_path: Path) -> None:
    command = tmp_path / "known"
    command.write_text(f"#!/bin/sh\ncat {server.known_hosts}\n")
    command.chmod(0o755)
    none = f"UserKnownHostsFile none\nGlobalKnownHostsFile none\nKnownHostsCommand {command}\n"
    config.write_text(f"IdentityFile none\n{none}")
    write_target(tmp_path, server, known_hosts=None)
    assert kind_of_client("pi5") is OpenSshTransport


@pytest.mark.parametrize("client", ["paramiko", "openssh"])
def test_variables_for_commands(
    server: PrivateSshd, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    monkeypatch.setenv("EDGEPHI_HERE", "sent")
    monkeypatch.setenv("HF_TOKEN", "secret")
    config.write_text('IdentityFile none\nSetEnv EDGEPHI_SET="a \\"b\\" c"\nSendEnv EDGEPHI_HERE HF_*\n')
    write_target(tmp_path, server, transport=client)
    with closing(open_transport(load_target("pi5"))) as transport:
        process = transport.start(["sh", "-c", 'echo "$EDGEPHI_SET|$EDGEPHI_HERE|$HF_TOKEN"'])
        assert list(process.lines()) == [b'a "b" c|sent|']


def test_trust_does_not_take_a_revoked_key(
    server: PrivateSshd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (key,) = read_known_hosts([server.known_hosts])
    known = tmp_path / "known"
    known.write_text(f"@revoked {server.known_hosts.read_text()}")
    write_target(tmp_path, server, known_hosts=str(known))
    with pytest.raises(SystemExit) as caught:
        main(["targets", "trust", "pi5", fingerprint(key.blob)])
    assert caught.value.code == 7
    assert f"host key is @revoked in {known}:1" in capsys.readouterr().err
