"""Features of SSH: host keys, logins, refusals. The server is the embedded one."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from tests.support.servers import Address, address_of
from toolkit.catalog.public_key import fingerprint
from toolkit.device.ssh import auth as ssh_auth, link as ssh_link
from toolkit.device.ssh.client import SshTransport
from toolkit.device.ssh.known_hosts import read_known_hosts
from toolkit.device.ssh.trust import trust_host_key
from toolkit.emulate import EmbeddedServer, embedded as embedded_module
from toolkit.emulate.sshd import write_key_pair
from toolkit.errors import (
    AuthFailed,
    CorruptBundle,
    DeviceFull,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    RemoteCommandFailed,
)


@pytest.fixture
def address(embedded: EmbeddedServer, tmp_path: Path) -> Address:
    """The embedded server with a known_hosts file of the test's own."""
    known = tmp_path / "known_hosts"
    known.write_text(embedded.known_hosts.read_text())
    return address_of(embedded, known_hosts=known)


@pytest.fixture
def offered(embedded: EmbeddedServer) -> str:
    (key,) = read_known_hosts([embedded.known_hosts])
    return fingerprint(key.blob)


def connect(address: Address, prompt: list[str] | None = None, secret: str = "") -> None:
    def answer(text: str) -> str:
        assert prompt is not None
        prompt.append(text)
        return secret

    SshTransport(address, None if prompt is None else answer).close()


def known_file(address: Address) -> Path:
    assert address.known_hosts is not None
    return address.known_hosts


def test_unknown_host_key(address: Address, offered: str) -> None:
    known_file(address).write_text("")
    with pytest.raises(HostKeyUnknown) as caught:
        connect(address)
    assert caught.value.message == (f"pi5 (127.0.0.1:{address.port}): unknown host key ssh-ed25519 {offered}")
    assert caught.value.hint == (
        "check it on the device with 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub', "
        f"then: edgephi targets trust pi5 {offered}"
    )


def test_changed_host_key(address: Address, offered: str, tmp_path: Path) -> None:
    public = write_key_pair(tmp_path / "other")
    known_file(address).write_text(f"# a comment\n[127.0.0.1]:{address.port} {public}\n")
    (old,) = read_known_hosts([known_file(address)])
    with pytest.raises(HostKeyChanged) as caught:
        connect(address)
    assert caught.value.message == (
        f"pi5 (127.0.0.1:{address.port}): the host key has changed: {known_file(address)}:2 has ssh-ed25519 "
        f"{fingerprint(old.blob)}, the server offers {offered}"
    )
    assert f"ssh-keygen -R '[127.0.0.1]:{address.port}' -f {known_file(address)}" in (caught.value.hint or "")


def test_revoked_host_key(address: Address) -> None:
    known = known_file(address)
    known.write_text(f"{known.read_text()}@revoked {known.read_text()}")
    with pytest.raises(HostKeyChanged, match="known_hosts:2"):
        connect(address)


def test_a_matching_key_under_the_name_without_port_is_enough(address: Address) -> None:
    known = known_file(address)
    known.write_text(known.read_text().replace(f"[127.0.0.1]:{address.port}", "127.0.0.1"))
    connect(address)


def test_another_key_under_the_name_without_port_is_not_a_change(address: Address, tmp_path: Path) -> None:
    known_file(address).write_text(f"127.0.0.1 {write_key_pair(tmp_path / 'other')}\n")
    with pytest.raises(HostKeyUnknown):
        connect(address)


def test_trust_appends_the_key(address: Address, offered: str, tmp_path: Path) -> None:
    address = replace(address, known_hosts=tmp_path / ".ssh" / "known_hosts")
    assert trust_host_key(address, offered) == known_file(address)
    assert trust_host_key(address, offered.removeprefix("SHA256:") + "=") == known_file(address)
    assert len(read_known_hosts([known_file(address)])) == 1
    connect(address)


def test_trust_refuses_another_fingerprint(address: Address, offered: str) -> None:
    known_file(address).write_text("")
    with pytest.raises(HostKeyChanged, match=r"no host key with fingerprint SHA256:abc; .*") as caught:
        trust_host_key(address, "SHA256:abc")
    assert f"offers ssh-ed25519 {offered}" in caught.value.message
    assert known_file(address).read_text() == ""


def test_trust_does_not_replace_a_known_key(address: Address, offered: str, tmp_path: Path) -> None:
    known_file(address).write_text(f"[127.0.0.1]:{address.port} {write_key_pair(tmp_path / 'other')}\n")
    with pytest.raises(HostKeyChanged, match="has changed"):
        trust_host_key(address, offered)


def test_wrong_key(address: Address, tmp_path: Path) -> None:
    write_key_pair(tmp_path / "wrong")
    with pytest.raises(AuthFailed) as caught:
        connect(replace(address, identity_file=tmp_path / "wrong"))
    assert f"login as '{address.user}' refused: tried {tmp_path}/wrong" in caught.value.message
    assert f"ssh-copy-id -p {address.port} {address.user}@127.0.0.1" in (caught.value.hint or "")


def test_no_key_at_all(address: Address) -> None:
    with pytest.raises(AuthFailed, match="no key to try") as caught:
        connect(replace(address, identity_file=None))
    assert "ssh-keygen -t ed25519" in (caught.value.hint or "")


def test_unreadable_key(address: Address, tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(AuthFailed, match=f"{tmp_path}/junk: "):
        connect(replace(address, identity_file=tmp_path / "junk"))


@pytest.fixture
def locked(address: Address, tmp_path: Path) -> Address:
    """The address with the right key, encrypted with the passphrase `secret`."""
    assert address.identity_file is not None
    key = tmp_path / "locked"
    key.touch(mode=0o600)
    key.write_bytes(address.identity_file.read_bytes())
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", key], check=True, capture_output=True)
    return replace(address, identity_file=key)


def test_encrypted_key_without_a_prompt(locked: Address) -> None:
    with pytest.raises(AuthFailed, match="locked needs a passphrase") as caught:
        connect(locked)
    assert f"ssh-add {locked.identity_file}" in (caught.value.hint or "")


def test_encrypted_key_with_a_prompt(locked: Address) -> None:
    prompts: list[str] = []
    connect(locked, prompts, "secret")
    assert prompts == [f"passphrase for {locked.identity_file}: "]


def test_an_empty_passphrase_leaves_the_key_out(locked: Address) -> None:
    prompts: list[str] = []
    with pytest.raises(AuthFailed, match="locked needs a passphrase"):
        connect(locked, prompts, "")
    assert len(prompts) == 1


def test_wrong_passphrase_is_asked_for_once(locked: Address) -> None:
    prompts: list[str] = []
    with pytest.raises(AuthFailed, match="the passphrase doesn't open"):
        connect(locked, prompts, "wrong")
    assert len(prompts) == 1


def test_agent_keys(locked: Address, address: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert address.identity_file is not None
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "agent").exists():
            time.sleep(0.01)
        subprocess.run(["ssh-add", "-q", address.identity_file], check=True, capture_output=True)
        connect(locked)
        connect(replace(address, identity_file=None))
    finally:
        agent.terminate()
        agent.wait()


def test_a_server_that_falls_silent_has_refused_nothing(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_auth, "_LOGIN_TIMEOUT_S", 1.0)
    monkeypatch.setattr(embedded_module.Session, "check_auth_publickey", lambda *_: time.sleep(2))
    with pytest.raises(HostUnreachable, match="no answer to the login within 1 s"):
        connect(address)


@pytest.mark.parametrize("secret", ["right", "wrong"])
def test_password_is_asked_for_once(address: Address, monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    def check(_session: object, _user: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL if password == "right" else paramiko.AUTH_FAILED

    monkeypatch.setattr(embedded_module.Session, "get_allowed_auths", lambda *_: "publickey,password")
    monkeypatch.setattr(embedded_module.Session, "check_auth_password", check)
    prompts: list[str] = []
    without_key = replace(address, identity_file=None)
    if secret == "right":
        connect(without_key, prompts, secret)
    else:
        with pytest.raises(AuthFailed, match="tried password"):
            connect(without_key, prompts, secret)
    assert prompts == [f"password of {address.user} on pi5 (127.0.0.1:{address.port}): "]


class Questions:
    """keyboard-interactive on paramiko's own server: rounds of several questions each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *rounds: list[tuple[str, str]], noise: str = "") -> None:
        self._rounds = list(rounds)
        self._noise = noise
        self._expected: list[str] = []
        monkeypatch.setattr(embedded_module.Session, "get_allowed_auths", lambda *_: "keyboard-interactive")
        monkeypatch.setattr(embedded_module.Session, "check_auth_interactive", lambda *_: self._next(), raising=False)
        monkeypatch.setattr(
            embedded_module.Session, "check_auth_interactive_response", lambda _, said: self._check(said), raising=False
        )

    def _next(self) -> paramiko.InteractiveQuery:
        self._expected = [answer for _, answer in self._rounds[0]]
        return paramiko.InteractiveQuery("", self._noise, *(question for question, _ in self._rounds.pop(0)))

    def _check(self, said: list[str]) -> object:
        if said != self._expected:
            return paramiko.AUTH_FAILED
        return self._next() if self._rounds else paramiko.AUTH_SUCCESSFUL


def test_several_questions_in_several_rounds(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"Password: ": "a", "Code from the card: ": "b", "And the one before: ": "c"}
    first, *others = secrets.items()
    Questions(monkeypatch, [first], others, [], noise="Welcome\x1b[2J to the\n board")
    asked: list[str] = []

    def person(text: str) -> str:
        asked.append(text)
        return next(answer for question, answer in secrets.items() if text.endswith(question))

    SshTransport(replace(address, identity_file=None), person).close()
    assert asked == [f"pi5 (127.0.0.1:{address.port}): Welcome [2J to the board {question}" for question in secrets]


def test_a_wrong_answer_among_several(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    Questions(monkeypatch, [("Password: ", "a"), ("Code: ", "b")])
    prompts: list[str] = []
    with pytest.raises(AuthFailed, match="tried keyboard-interactive"):
        connect(replace(address, identity_file=None), prompts, "a")
    assert len(prompts) == 2


def test_a_server_that_asks_without_an_end(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    Questions(monkeypatch, *([("Again: ", "a")] for _ in range(100)))
    prompts: list[str] = []
    with pytest.raises((AuthFailed, HostUnreachable)):
        connect(replace(address, identity_file=None), prompts, "a")
    assert len(prompts) == 16


def test_whoever_is_asked_may_give_up(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    Questions(monkeypatch, [("Password: ", "a")])

    def person(_text: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SshTransport(replace(address, identity_file=None), person)


def test_methods_that_the_configuration_switches_off(
    address: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Questions(monkeypatch, [("Password: ", "a")])
    (tmp_path / "ssh_config").write_text("IdentityFile none\nKbdInteractiveAuthentication no\n")
    prompts: list[str] = []
    with pytest.raises(AuthFailed, match="no key to try"):
        connect(replace(address, identity_file=None), prompts, "a")
    assert prompts == []


def test_refused_port(address: Address) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(HostUnreachable) as caught:
        connect(replace(address, port=port))
    assert caught.value.message == f"pi5 (127.0.0.1:{port}): connection refused"
    assert "sshd" in (caught.value.hint or "")


def test_name_that_does_not_resolve(address: Address) -> None:
    with pytest.raises(HostUnreachable, match=r"pi5 \(no-such.invalid:\d+\): no address for the name"):
        connect(replace(address, host="no-such.invalid"))


def test_host_that_does_not_answer(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", never)
    with pytest.raises(HostUnreachable, match="no answer within 10 s"):
        connect(address)


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_server_that_speaks_something_else(address: Address, monkeypatch: pytest.MonkeyPatch, greeting: bytes) -> None:
    monkeypatch.setattr(ssh_link, "_HANDSHAKE_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        threading.Thread(target=lambda: listener.accept()[0].sendall(greeting), daemon=True).start()
        with pytest.raises(HostUnreachable, match="no SSH handshake"):
            connect(replace(address, port=listener.getsockname()[1]))
        assert time.monotonic() - started < 5


def test_abandoned_transfer_leaves_a_usable_connection(
    address: Address, embedded: EmbeddedServer, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 40_000_000)
    with closing(SshTransport(address)) as transport:
        steps = transport.put(source, "abandoned.part")
        next(steps)
        steps.close()
        assert 0 < (transport.size("abandoned.part") or 0) < 40_000_000
        assert embedded.root.joinpath("abandoned.part").read_bytes().strip(b"x") == b""


def test_source_that_cannot_be_read(address: Address, tmp_path: Path) -> None:
    with (
        closing(SshTransport(address)) as transport,
        pytest.raises(CorruptBundle, match="none: cannot be read"),
    ):
        list(transport.put(tmp_path / "none", "none"))


def test_the_free_space_is_asked_before_writing(
    address: Address, embedded: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(SshTransport, "_free_bytes", lambda *_: 1_100_000)
    full = pytest.raises(DeviceFull, match=r"disk full: needs 3 MB, 1\.1 MB free on here$")
    with closing(SshTransport(address)) as transport, full:
        list(transport.put(source, "here/file"))
    assert not (embedded.root / "here").exists()


def test_a_refusal_of_the_server_is_worded(address: Address, tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    with closing(SshTransport(address)) as transport:
        with pytest.raises(RemoteCommandFailed, match=r"writing /etc/outside failed: permission denied"):
            list(transport.put(tmp_path / "source", "/etc/outside"))
        assert transport.start(["true"]).wait() == 0


def test_a_silent_link_has_a_time_limit(address: Address) -> None:
    with closing(SshTransport(address)) as transport:
        sock = transport._link.transport.sock
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000


def test_aes_gcm_is_preferred(address: Address) -> None:
    with closing(SshTransport(address)) as transport:
        assert transport._link.transport.remote_cipher == "aes128-gcm@openssh.com"


def test_proxy_command(address: Address, tmp_path: Path) -> None:
    relay = tmp_path / "relay.py"
    relay.write_text(
        "import socket, sys, threading, os\n"
        "sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while data := os.read(0, 65536): sock.sendall(data)\n"
        "    sock.shutdown(socket.SHUT_WR)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while data := sock.recv(65536): os.write(1, data)\n"
    )
    (tmp_path / "ssh_config").write_text(f"ProxyCommand {sys.executable} {relay} %h %p\n")
    with closing(SshTransport(address)) as transport:
        assert transport.start(["exit", "3"]).wait() == 3


def test_proxy_command_that_dies(address: Address, tmp_path: Path) -> None:
    (tmp_path / "ssh_config").write_text("ProxyCommand false\n")
    started = time.monotonic()
    with pytest.raises(HostUnreachable, match="no SSH handshake"):
        connect(address)
    assert time.monotonic() - started < 5
