from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.support.servers import address_of
from toolkit.device import Transport
from toolkit.device.local import LocalTransport
from toolkit.device.ssh.client import SshTransport
from toolkit.device.ssh.openssh import OpenSshTransport
from toolkit.device.watched import WatchedTransport
from toolkit.emulate import EmbeddedServer, PrivateSshd
from toolkit.errors import DeviceError, HostUnreachable


@pytest.fixture(params=["local", "embedded", "sshd", "openssh"])
def transport(request: pytest.FixtureRequest, embedded: EmbeddedServer, sshd: PrivateSshd) -> Transport:
    if request.param == "local":
        return LocalTransport()
    if request.param == "openssh":
        return OpenSshTransport(address_of(sshd))
    return SshTransport(address_of(embedded if request.param == "embedded" else sshd))


def test_what_is_sent_is_counted(transport: Transport, embedded: EmbeddedServer) -> None:
    folder = Path(tempfile.mkdtemp(dir=embedded.root))
    (folder / "source").write_bytes(os.urandom(3_000_000))
    watched = WatchedTransport(transport)
    for offset in (0, 1_000_000):
        list(watched.put(folder / "source", str(folder / "copy"), offset))
    assert watched.sent_bytes == watched.size(str(folder / "copy")) + 2_000_000 == 5_000_000
    watched.close()


def test_cut_ends_a_command_that_another_thread_waits_for(transport: Transport) -> None:
    watched = WatchedTransport(transport)
    process = watched.start(["sh", "-c", "echo ready; sleep 15"])
    lines = process.lines()
    assert next(lines) == b"ready"
    threading.Timer(0.2, watched.cut).start()
    began = time.monotonic()
    try:
        assert list(lines) == []
        process.wait()
    except DeviceError:
        pass
    assert time.monotonic() - began < 5
    with pytest.raises(DeviceError):
        watched.start(["true"])


def test_nothing_starts_after_a_cut(tmp_path: Path) -> None:
    watched = WatchedTransport(LocalTransport())
    watched.cut()
    with pytest.raises(HostUnreachable, match="closed from this side"):
        watched.start(["sh", "-c", f"sleep 1; touch {tmp_path}/trace"])
    time.sleep(1.2)
    assert not (tmp_path / "trace").exists()


def test_a_command_that_is_over_is_not_killed_again() -> None:
    watched = WatchedTransport(LocalTransport())
    process = watched.start(["true"])
    assert process.wait() == 0
    assert watched._process is None
    process = watched.start(["sleep", "15"])
    process.kill()
    assert process.wait() == 137
    assert watched._process is None
    watched.cut()
