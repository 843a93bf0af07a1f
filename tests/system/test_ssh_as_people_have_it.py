"""Logins in the ways that people set up: addresses, known hosts, certificates, agents, hops. The servers are real."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.servers import Address, address_of, connects, needs_sshd
from toolkit.catalog.public_key import fingerprint
from toolkit.device.ssh import proxy as ssh_proxy
from toolkit.device.ssh.client import SshTransport
from toolkit.device.ssh.known_hosts import read_known_hosts
from toolkit.device.ssh.trust import trust_host_key
from toolkit.emulate import PrivateSshd
from toolkit.errors import AuthFailed, HostKeyUnknown, HostUnreachable, RemoteCommandFailed

pytestmark = [needs_sshd, pytest.mark.usefixtures("config")]


def keygen(*arguments: str | Path) -> None:
    subprocess.run(["ssh-keygen", "-q", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key of an authority that certifies users and hosts."""
    path = tmp_path_factory.mktemp("authority") / "ca"
    keygen("-t", "ed25519", "-N", "", "-C", "", "-f", path)
    return path


@pytest.fixture(scope="module")
def server(authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    """A server, on IPv6 too, with a certified ECDSA host key, which trusts the authority; one session a connection."""
    folder = tmp_path_factory.mktemp("server")
    host_key = folder / "host_ecdsa"
    keygen("-t", "ecdsa", "-N", "", "-f", host_key)
    keygen("-s", authority, "-I", "host", "-h", "-n", "127.0.0.1,board", f"{host_key}.pub")
    (folder / "banner").write_text("*** Authorized use only ***\n")
    extra = f"""
ListenAddress ::1
HostKey {host_key}
HostCertificate {host_key}-cert.pub
TrustedUserCAKeys {authority}.pub
Banner {folder}/banner
"""
    with PrivateSshd(folder / "device", max_sessions=1, extra_config=extra) as running:
        yield running


# --- addresses and their entries in known_hosts ---


def test_ipv6(server: PrivateSshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(server.known_hosts.read_text().replace("[127.0.0.1]", "[::1]"))
    connects(address_of(server, host="::1", known_hosts=known))


def test_hashed_names_in_the_second_of_two_files(server: PrivateSshd, config: Path, tmp_path: Path) -> None:
    hashed = tmp_path / "hashed"
    shutil.copy(server.known_hosts, hashed)
    keygen("-H", "-f", hashed)
    assert hashed.read_text().startswith("|1|")
    config.write_text(f"IdentityFile none\nUserKnownHostsFile {tmp_path}/none {hashed}\n")
    connects(address_of(server, known_hosts=None))


def test_a_name_of_its_own_for_the_host_key(server: PrivateSshd, config: Path, tmp_path: Path) -> None:
    (tmp_path / "known").write_text("the-board " + server.known_hosts.read_text().split(" ", 1)[1])
    config.write_text("IdentityFile none\nHostKeyAlias the-board\n")
    connects(address_of(server, known_hosts=tmp_path / "known"))


def test_a_trusted_key_is_hashed_where_that_is_wished(server: PrivateSshd, config: Path, tmp_path: Path) -> None:
    config.write_text("IdentityFile none\nHashKnownHosts yes\n")
    address = address_of(server, known_hosts=tmp_path / "known")
    (key,) = read_known_hosts([server.known_hosts])
    trust_host_key(address, fingerprint(key.blob))
    assert (tmp_path / "known").read_text().startswith("|1|")
    connects(address)
    found = subprocess.run(
        ["ssh-keygen", "-F", f"[127.0.0.1]:{server.port}", "-f", tmp_path / "known"], capture_output=True
    )
    assert found.returncode == 0


def certified_only(server: PrivateSshd, authority: Path, tmp_path: Path, pattern: str = "*", more: str = "") -> Address:
    known = tmp_path / "certified"
    known.write_text(f"@cert-authority {pattern} {authority.with_suffix('.pub').read_text()}{more}")
    return address_of(server, known_hosts=known)


def test_a_host_that_an_authority_has_certified(server: PrivateSshd, authority: Path, tmp_path: Path) -> None:
    connects(certified_only(server, authority, tmp_path))


def test_a_certificate_for_another_host(server: PrivateSshd, authority: Path, config: Path, tmp_path: Path) -> None:
    config.write_text("IdentityFile none\nHostKeyAlias elsewhere\n")
    with pytest.raises(HostKeyUnknown, match=r"its certificate doesn't count: it is for 127\.0\.0\.1, board"):
        SshTransport(certified_only(server, authority, tmp_path))


def test_an_authority_that_is_revoked(server: PrivateSshd, authority: Path, tmp_path: Path) -> None:
    revoked = f"@revoked * {authority.with_suffix('.pub').read_text()}"
    with pytest.raises(HostKeyUnknown, match="nobody who is trusted has signed it"):
        SshTransport(certified_only(server, authority, tmp_path, more=revoked))


def test_an_authority_for_other_hosts(server: PrivateSshd, authority: Path, tmp_path: Path) -> None:
    with pytest.raises(HostKeyUnknown):
        SshTransport(certified_only(server, authority, tmp_path, pattern="*.example.org"))


def test_the_types_of_host_keys_that_the_configuration_wants(server: PrivateSshd, config: Path, tmp_path: Path) -> None:
    config.write_text("IdentityFile none\nHostKeyAlgorithms ecdsa-sha2-nistp256\n")
    with pytest.raises(HostKeyUnknown, match="unknown host key ecdsa-sha2-nistp256"):
        SshTransport(address_of(server))


# --- keys, agents, certificates ---


@contextmanager
def agent(folder: Path, *keys: Path) -> Iterator[Path]:
    """An ssh-agent with these keys, at a socket that only a configuration names."""
    path = folder / "a.sock"
    child = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        environment = os.environ | {"SSH_AUTH_SOCK": str(path)}
        while subprocess.run(["ssh-add", "-l"], capture_output=True, env=environment).returncode == 2:
            time.sleep(0.01)  # it doesn't listen yet
        for key in keys:
            subprocess.run(["ssh-add", "-q", key], check=True, capture_output=True, env=environment)
        yield path
    finally:
        child.terminate()
        child.wait()


def new_key(folder: Path, name: str, authority: Path | None = None, kind: str = "ed25519") -> Path:
    """A key that no server knows; with `authority` its certificate lies beside it."""
    path = folder / name
    keygen("-t", kind, "-N", "", "-f", path)
    if authority is not None:
        keygen("-s", authority, "-I", "user", "-n", getpass.getuser(), path.with_name(f"{name}.pub"))
    return path


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_certificate_beside_the_key(server: PrivateSshd, authority: Path, tmp_path: Path, kind: str) -> None:
    connects(address_of(server, identity_file=new_key(tmp_path, "id", authority, kind)))


def test_a_certificate_elsewhere(server: PrivateSshd, authority: Path, config: Path, tmp_path: Path) -> None:
    key = new_key(tmp_path, "id", authority)
    (tmp_path / "id-cert.pub").rename(tmp_path / "card.pub")
    with pytest.raises(AuthFailed):
        SshTransport(address_of(server, identity_file=key))
    config.write_text(f"IdentityFile none\nCertificateFile {tmp_path}/card.pub\n")
    connects(address_of(server, identity_file=key))


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_an_agent_with_a_certificate(
    server: PrivateSshd, authority: Path, config: Path, tmp_path: Path, kind: str
) -> None:
    key = new_key(tmp_path, "id", authority, kind)
    with agent(tmp_path, key) as path:
        config.write_text(f"IdentityFile none\nIdentityAgent {path}\n")
        connects(address_of(server, identity_file=None))


def test_an_agents_key_with_a_certificate_from_a_file(
    server: PrivateSshd, authority: Path, config: Path, tmp_path: Path
) -> None:
    key = new_key(tmp_path, "id", authority)
    (tmp_path / "id-cert.pub").rename(tmp_path / "card.pub")
    with agent(tmp_path, key) as path:
        key.unlink()
        config.write_text(f"IdentityFile none\nIdentityAgent {path}\nCertificateFile {tmp_path}/card.pub\n")
        connects(address_of(server, identity_file=None))


def test_an_agent_that_only_the_configuration_names(server: PrivateSshd, config: Path, tmp_path: Path) -> None:
    address = address_of(server, identity_file=None)
    with agent(tmp_path, server.identity_file) as path:
        config.write_text(f"IdentityFile none\nIdentityAgent {path}\n")
        connects(address)
        config.write_text("IdentityFile none\nIdentityAgent none\n")
        with pytest.raises(AuthFailed, match="no key to try"):
            SshTransport(address)


def test_the_agents_keys_that_the_configuration_names(server: PrivateSshd, config: Path, tmp_path: Path) -> None:
    """The configuration names a key by its public file alone, as with a token, or by an encrypted private file."""
    wrong, right = new_key(tmp_path, "wrong"), tmp_path / "right"
    shutil.copy(server.identity_file, right)
    (tmp_path / "right.pub").write_text(subprocess.check_output(["ssh-keygen", "-y", "-f", right], text=True))
    with agent(tmp_path, wrong, right) as path:
        named = f"IdentityAgent {path}\nIdentitiesOnly yes\nIdentityFile {tmp_path}"
        config.write_text(f"{named}/wrong.pub\n")
        with pytest.raises(AuthFailed, match=r"tried agent: [^,]*$"):
            SshTransport(address_of(server, identity_file=None))
        for public in ("right.pub", "right"):
            config.write_text(f"{named}/{public}\n")
            if public == "right":
                keygen("-p", "-P", "", "-N", "secret", "-f", right)
                (tmp_path / "right.pub").unlink()
            connects(address_of(server, identity_file=None))


# --- hops ---


def hops(server: PrivateSshd, authority: Path, config: Path, way: str) -> None:
    """Configure `first`, `second` and `inner`, all of them the server; only `inner` has `way`."""
    known = config.with_name("known")
    known.write_text(f"@cert-authority * {authority.with_suffix('.pub').read_text()}")
    common = (
        f"  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n  IdentityFile {server.identity_file}\n"
        f"  UserKnownHostsFile {known}\n"
    )
    boards = config.with_name("boards")
    boards.write_text(f"Host first second inner\n{common}")
    config.write_text(f"Include {boards}\nMatch host inner\nMatch originalhost inner exec true\n  {way}\n")


@pytest.mark.parametrize("takes_socket", [True, False], ids=["with a socket", "as on Windows"])
def test_two_hops(
    server: PrivateSshd, authority: Path, config: Path, monkeypatch: pytest.MonkeyPatch, takes_socket: bool
) -> None:
    monkeypatch.setattr(ssh_proxy, "_TAKES_SOCKET", takes_socket)
    hops(server, authority, config, "ProxyJump first,second")
    with closing(SshTransport(Address("pi5", "inner"))) as transport:
        process = transport.start(["sh", "-c", "head -c 3000000 /dev/zero"])
        assert sum(map(len, process.lines())) == 3_000_000
        assert process.wait() == 0


def test_a_hop_that_refuses_says_why(server: PrivateSshd, authority: Path, config: Path) -> None:
    hops(server, authority, config, "ProxyCommand ssh -F none -oBatchMode=yes -oIdentityFile=none -p %p -W x:1 %h")
    with pytest.raises(HostKeyUnknown, match=r"^pi5: jump host 127\.0\.0\.1 \(127\.0\.0\.1:\d+\): unknown host key "):
        SshTransport(Address("pi5", "inner"))
    hops(server, authority, config, "ProxyCommand sh -c 'echo nothing works >&2; exit 1'")
    with pytest.raises(HostUnreachable, match="no way through the proxy: nothing works") as error:
        SshTransport(Address("pi5", "inner"))
    assert "try what it runs: sh -c" in (error.value.hint or "")


def test_a_server_that_talks_before_its_greeting(server: PrivateSshd, authority: Path, config: Path) -> None:
    hops(server, authority, config, f"ProxyCommand sh -c 'echo Welcome; exec ssh -F {config} -W %h:%p first'")
    connects(Address("pi5", "inner"))


# --- limits of a server ---


def test_one_session_on_a_connection_is_enough(server: PrivateSshd) -> None:
    with closing(SshTransport(address_of(server))) as transport:
        assert transport.size("no-such-file") is None
        sleeping = [transport.start(["sh", "-c", "echo ready; read x"]) for _ in range(2)]
        assert [next(process.lines()) for process in sleeping] == [b"ready", b"ready"]
        assert transport.start(["echo", "more"]).wait() == 0
        with pytest.raises(RemoteCommandFailed, match="refuses another session"):
            transport.start(["true"])
        for process in sleeping:
            process.close_stdin()
            process.wait()
