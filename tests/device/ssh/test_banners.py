"""A server's words before the login are shown at once, with either client, and give a person time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import paramiko
import pytest

from tests.support.servers import Address, address_of, needs_sshd
from toolkit.device.ssh import auth as ssh_auth, banners as ssh_banners, link as ssh_link, openssh as ssh_openssh
from toolkit.device.ssh.banners import Banners
from toolkit.device.ssh.client import SshTransport
from toolkit.device.ssh.openssh import OpenSshTransport
from toolkit.emulate import EmbeddedServer, embedded as embedded_module
from toolkit.errors import DeviceError, HostUnreachable
from toolkit.events import Event, Step, listening

Client = Callable[[Address], SshTransport | OpenSshTransport]
CHECK = "# This needs a check.\r\n# To authenticate, visit: https://login.example/a/\x1b[31m123\r\n"
SHOWN = ["# This needs a check.", "# To authenticate, visit: https://login.example/a/ [31m123"]


@pytest.fixture(params=[SshTransport, pytest.param(OpenSshTransport, marks=needs_sshd)])
def client(request: pytest.FixtureRequest) -> Client:
    found: Client = request.param
    return found


class Browser:
    """A server that lets everybody in once a person has approved, and says before where that is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, text: str = CHECK) -> None:
        self.approved = threading.Event()

        def check(*_: object) -> int:
            return paramiko.AUTH_SUCCESSFUL if self.approved.wait(20) else paramiko.AUTH_FAILED

        monkeypatch.setattr(embedded_module.Session, "get_banner", lambda _: (text, "en"))
        monkeypatch.setattr(embedded_module.Session, "get_allowed_auths", lambda *_: "none")
        monkeypatch.setattr(embedded_module.Session, "check_auth_none", check)
        monkeypatch.setattr(ssh_auth, "_LOGIN_TIMEOUT_S", 0.3)
        monkeypatch.setattr(ssh_openssh, "_LOGIN_TIMEOUT_S", 0.3)


@pytest.fixture
def address(embedded: EmbeddedServer, tmp_path: Path) -> Address:
    (tmp_path / "ssh_config").write_text("IdentityFile none\nConnectTimeout 1\n")
    return address_of(embedded, identity_file=None)


def test_a_login_that_waits_for_a_browser(
    embedded: EmbeddedServer, address: Address, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person approves when the words are there, after the usual limit is over."""
    browser = Browser(monkeypatch)
    where = f"pi5 (127.0.0.1:{embedded.port})"
    said: list[str] = []

    def hear(event: Event) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert isinstance(event, Step)
        said.append(event.text)
        threading.Timer(2.0, browser.approved.set).start()

    with listening(hear), closing(client(address)) as transport:
        assert transport.start(["true"]).wait() == 0
    assert [line.removeprefix(f"{where} says: ") for line in said][:1] == SHOWN[:1]
    assert said[1].startswith(f"{where} says: # To authenticate, visit: https://login.example/a/")
    assert "\x1b" not in "".join(said)


def test_nobody_approves(
    embedded: EmbeddedServer, address: Address, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even without a listener the words are in the error."""
    Browser(monkeypatch)
    monkeypatch.setattr(ssh_banners, "PERSON_S", 0.6)
    started = time.monotonic()
    with pytest.raises(DeviceError, match=r"the server said: # This needs a check\. # To authenticate, visit: https:"):
        client(address)
    assert time.monotonic() - started < 15


def test_without_words_the_usual_limit_holds(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    Browser(monkeypatch, text="")
    with pytest.raises(HostUnreachable, match=r"no answer to the login within 0 s$"):
        SshTransport(address)


@pytest.mark.parametrize("level", ["QUIET", "ERROR"])
def test_a_quiet_configuration(
    embedded: EmbeddedServer,
    address: Address,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    level: str,
) -> None:
    Browser(monkeypatch).approved.set()
    (tmp_path / "ssh_config").write_text(f"IdentityFile none\nLogLevel {level}\n")
    said: list[Event] = []
    with listening(said.append):
        client(address).close()
    assert said == []


def test_a_server_that_talks_without_an_end() -> None:
    said: list[Event] = []
    banners = Banners("pi5")
    with listening(said.append):
        for number in range(1000):
            banners.hear(f"{number} {'x' * 100_000}\n" * 100)
            banners.show()
    assert len(said) == 64
    assert sum(len(event.text) for event in said if isinstance(event, Step)) < 64 * 600


def test_a_proxy_that_waits_for_a_browser(
    embedded: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_link, "_HANDSHAKE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(ssh_link, "_PATIENCE_S", 0.2)
    relay = (
        "import os, socket, sys, threading, time\n"
        "print('Please visit https://access.example/', file=sys.stderr, flush=True)\n"
        "time.sleep(3)\n"
        "sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while data := os.read(0, 65536): sock.sendall(data)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while data := sock.recv(65536): os.write(1, data)\n"
    )
    (tmp_path / "relay.py").write_text(relay)
    (tmp_path / "ssh_config").write_text(
        f"IdentityFile none\nProxyCommand {sys.executable} {tmp_path}/relay.py %h %p\n"
    )
    said: list[Event] = []
    with listening(said.append):
        SshTransport(address_of(embedded)).close()
    assert said == [Step(f"pi5 (127.0.0.1:{embedded.port}): the way there says: Please visit https://access.example/")]
