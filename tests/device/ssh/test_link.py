"""Links that break or fall silent, for each SSH client."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.servers import Address, Relay, address_of, needs_sshd
from toolkit.device.ssh import link as ssh_link
from toolkit.device.ssh.client import SshTransport
from toolkit.device.ssh.openssh import OpenSshTransport
from toolkit.errors import HostUnreachable

Client = type[SshTransport] | type[OpenSshTransport]


@dataclass(frozen=True)
class Route:
    """A client, and a server that it reaches only through `relay`; `root` is a folder that the server writes to."""

    client: Client
    direct: Address
    relay: Relay
    root: Path

    def connect(self) -> SshTransport | OpenSshTransport:
        return self.client(replace(self.direct, port=self.relay.port))


@pytest.fixture(
    params=[
        pytest.param((SshTransport, "embedded"), id="paramiko"),
        pytest.param((OpenSshTransport, "sshd"), id="openssh", marks=needs_sshd),
    ]
)
def route(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Route]:
    client, name = request.param
    server = request.getfixturevalue(name)
    relay = Relay(server.port)
    known = tmp_path / "known_hosts"
    line = server.known_hosts.read_text()
    known.write_text(line + line.replace(f":{server.port} ", f":{relay.port} "))
    yield Route(client, address_of(server, known_hosts=known), relay, server.root)
    relay.cut()


def large(folder: Path) -> Path:
    source = folder / "source"
    source.write_bytes(os.urandom(1 << 20) * 64)
    return source


def break_after(steps: Iterator[int], byte_count: int, fault: Callable[[], None]) -> int:
    """Cause the fault after that many bytes of a transfer, which must then fail; returns the bytes until the fault."""
    done = 0
    while done < byte_count:
        done += next(steps)
    fault()
    with pytest.raises(HostUnreachable, match="lost while writing"):
        list(steps)
    return done


def test_in_mid_command(route: Route) -> None:
    with closing(route.connect()) as transport:
        process = transport.start(["sh", "-c", "echo ready; sleep 30"])
        lines = process.lines()
        assert next(lines) == b"ready"
        route.relay.cut()
        with pytest.raises(HostUnreachable, match=rf"pi5 \(127.0.0.1:{route.relay.port}\): the connection was lost"):
            next(lines)
        with pytest.raises(HostUnreachable):
            process.wait()
        with pytest.raises(HostUnreachable):
            process.send(b"more")
        process.kill()
        with pytest.raises(HostUnreachable):
            transport.start(["true"])


def test_a_transfer_goes_on_after_its_end(route: Route, tmp_path: Path) -> None:
    source, partial = large(tmp_path), route.root / "cut.part"
    with closing(route.connect()) as transport:
        done = break_after(transport.put(source, str(partial)), 4_000_000, route.relay.cut)
        with pytest.raises(HostUnreachable):
            transport.size(str(partial))
    written = partial.stat().st_size
    assert done <= written < source.stat().st_size
    with closing(route.client(route.direct)) as again:
        list(again.put(source, str(partial), written))
    assert partial.read_bytes() == source.read_bytes()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_link, "KEEPALIVE_S", 0.5)
    monkeypatch.setattr(ssh_link, "SILENCE_S", 2.0)


@pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's")
@pytest.mark.usefixtures("impatient")
def test_silence_ends_a_command(route: Route) -> None:
    with closing(route.connect()) as transport:
        quiet = transport.start(["sleep", "4"])
        assert quiet.wait() == 0, "a command that says nothing isn't a silent link"
        process = transport.start(["sleep", "60"])
        route.relay.freeze()
        with pytest.raises(HostUnreachable, match="the connection was lost while a command ran"):
            process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's")
@pytest.mark.usefixtures("impatient")
def test_silence_ends_a_transfer(route: Route, tmp_path: Path) -> None:
    with closing(route.connect()) as transport:
        break_after(transport.put(large(tmp_path), str(route.root / "silent.part")), 1, route.relay.freeze)
