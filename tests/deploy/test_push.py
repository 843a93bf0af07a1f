"""The push engine over real connections: content that is sent once only, limits, cuts, several connections."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.builds import follow
from tests.support.devices import target_over
from tests.support.servers import Relay
from toolkit.catalog import Target
from toolkit.catalog.target import over as with_client
from toolkit.deploy import push as engine
from toolkit.deploy.push import CHUNK_BYTES, PIECE_BYTES, Piece, Upload, lacking, push
from toolkit.device import Device, Transport, connect, open_transport
from toolkit.device.watched import WatchedTransport
from toolkit.emulate import EmbeddedServer
from toolkit.errors import CorruptBundle, DeviceFull, HostUnreachable
from toolkit.events import Event, Progress, Service

MIB = 2**20


def upload(path: Path, size: int, seed: bytes = b"seed") -> Upload:
    block = hashlib.shake_256(seed).digest(MIB)
    content = b"".join(number.to_bytes(4, "big") + block[4:] for number in range(-(-size // MIB)))[:size]
    path.write_bytes(content)
    return Upload(path, hashlib.sha256(content).hexdigest(), size)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path) as server:
        yield server


@pytest.fixture
def device(server: EmbeddedServer, tmp_path: Path) -> Iterator[Device]:
    with connect(target_over(server, tmp_path / "device")) as device:
        yield device


def over(relay: Relay, target: Target, tmp_path: Path) -> Target:
    """The target behind a relay."""
    assert target.known_hosts is not None
    known = tmp_path / "known_hosts-relay"
    known.write_text(target.known_hosts.read_text().replace(f":{target.port}", f":{relay.port}"))
    return target.model_copy(update={"port": relay.port, "known_hosts": known})


def arrived(tmp_path: Path, file: Upload) -> Path:
    return tmp_path / "device" / "incoming" / f"{file.sha256}.part"


def test_files_arrive_whole_and_are_not_sent_twice(device: Device, tmp_path: Path) -> None:
    files = [upload(tmp_path / "large", PIECE_BYTES + 3 * MIB + 7), upload(tmp_path / "empty", 0)]
    events: list[Event] = []
    assert follow(push(device, files), events) == files[0].size_bytes
    for file in files:
        assert arrived(tmp_path, file).read_bytes() == file.source.read_bytes()
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == sorted(done) and done[-1] == files[0].size_bytes
    assert follow(push(device, files)) == 0


def test_only_chunks_that_are_wrong_or_absent_are_sent_again(device: Device, tmp_path: Path) -> None:
    file = upload(tmp_path / "large", 6 * CHUNK_BYTES + 5)
    follow(push(device, [file]))
    with arrived(tmp_path, file).open("r+b") as part:
        part.seek(CHUNK_BYTES + 9)
        part.write(b"?")  # a flipped byte in the second chunk
        part.seek(3 * CHUNK_BYTES)
        part.write(b"\0" * CHUNK_BYTES)  # a hole that several connections left
        part.truncate(5 * CHUNK_BYTES + 100)
    assert follow(push(device, [file])) == 3 * CHUNK_BYTES + 5
    assert arrived(tmp_path, file).read_bytes() == file.source.read_bytes()


def test_pieces_are_the_gaps_between_what_is_right(tmp_path: Path) -> None:
    count = PIECE_BYTES // CHUNK_BYTES + 2
    file = upload(tmp_path / "large", count * CHUNK_BYTES + 5)
    content = file.source.read_bytes()
    right = [hashlib.sha256(content[i : i + CHUNK_BYTES]).hexdigest() for i in range(0, len(content), CHUNK_BYTES)]
    wrong = "0" * 64
    whole = [Piece(file, 0, PIECE_BYTES), Piece(file, PIECE_BYTES, 2 * CHUNK_BYTES + 5)]
    assert list(lacking(file, [])) == whole
    assert list(lacking(file, [wrong] * (count + 1))) == whole
    assert list(lacking(file, right)) == []
    assert list(lacking(file, [right[0], wrong, right[2], wrong, wrong, *right[5:count]])) == [
        Piece(file, CHUNK_BYTES, CHUNK_BYTES),
        Piece(file, 3 * CHUNK_BYTES, 2 * CHUNK_BYTES),
        Piece(file, count * CHUNK_BYTES, 5),
    ]
    empty = upload(tmp_path / "empty", 0)
    assert list(lacking(empty, [])) == [Piece(empty, 0, 0)]


def test_another_connection_is_opened_when_it_may_help_and_all_close(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_RAMP_S", 0.05)
    file = upload(tmp_path / "large", 160 * MIB)
    with connect(target_over(server, tmp_path / "device")) as device:
        opened: list[Transport] = []

        def dial() -> Transport:
            opened.append(device.dial())
            return opened[-1]

        follow(push(replace(device, dial=dial), [file]))
    assert arrived(tmp_path, file).read_bytes() == file.source.read_bytes()
    assert opened
    assert all(transport._is_lost() for transport in opened)  # type: ignore[attr-defined]


def test_what_another_connection_breaks_off_goes_over_the_first(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_RAMP_S", 0.05)
    file = upload(tmp_path / "large", 160 * MIB)
    target, relay = target_over(server, tmp_path / "device"), Relay(server.port)
    opened: list[WatchedTransport] = []

    def over_the_relay() -> WatchedTransport:
        opened.append(WatchedTransport(open_transport(over(relay, target, tmp_path))))
        return opened[-1]

    def cut_once_it_sends(device: Device) -> Service[int]:
        service = push(device, [file])
        while True:
            try:
                event = next(service)
            except StopIteration as end:
                return int(end.value)
            if opened and opened[0].sent_bytes:
                relay.cut()
            yield event

    with connect(target) as device:
        assert follow(cut_once_it_sends(replace(device, dial=over_the_relay))) == file.size_bytes
    assert opened[0].sent_bytes
    assert arrived(tmp_path, file).read_bytes() == file.source.read_bytes()


def test_a_server_that_refuses_more_connections_gets_the_file_over_one(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_RAMP_S", 0.05)
    file = upload(tmp_path / "large", 100 * MIB)

    def refused() -> Transport:
        raise HostUnreachable("pi5: no more connections")

    with connect(target_over(server, tmp_path / "device")) as device:
        assert follow(push(replace(device, dial=refused), [file])) == file.size_bytes
    assert arrived(tmp_path, file).read_bytes() == file.source.read_bytes()


def test_a_limit_is_held(server: EmbeddedServer, tmp_path: Path) -> None:
    file = upload(tmp_path / "small", 3 * MIB)
    with connect(target_over(server, tmp_path / "device"), limit_bytes_per_s=2 * MIB) as device:
        began = time.monotonic()
        follow(push(device, [file]))
    assert time.monotonic() - began > 1.2
    assert arrived(tmp_path, file).read_bytes() == file.source.read_bytes()


def test_a_push_that_is_given_up_ends_at_once_though_its_limit_is_low(server: EmbeddedServer, tmp_path: Path) -> None:
    file = upload(tmp_path / "large", 20 * MIB)
    # At this rate a packet takes longer than the time that the test allows below.
    with connect(target_over(server, tmp_path / "device"), limit_bytes_per_s=40_000) as device:
        service = push(device, [file])
        for event in service:
            if isinstance(event, Progress):
                break
            time.sleep(0.3)
        began = time.monotonic()
        service.close()
        assert time.monotonic() - began < 5
    with connect(target_over(server, tmp_path / "device")) as device:
        assert 0 < follow(push(device, [file])) <= file.size_bytes
    assert arrived(tmp_path, file).read_bytes() == file.source.read_bytes()


@pytest.mark.parametrize(("seed", "client"), [(0, "auto"), (1, "auto"), (2, "auto"), (3, "openssh"), (4, "openssh")])
def test_a_link_that_is_cut_anywhere_costs_only_what_was_under_way(
    server: EmbeddedServer, tmp_path: Path, seed: int, client: str
) -> None:
    file = upload(tmp_path / "large", 80 * MIB)
    offset = int.from_bytes(hashlib.sha256(bytes([seed])).digest()[:4], "big") % file.size_bytes
    relay = Relay(server.port)
    target = with_client(target_over(server, tmp_path / "device"), client)
    with connect(over(relay, target, tmp_path)) as device, pytest.raises(HostUnreachable):
        for event in push(device, [file]):
            if isinstance(event, Progress) and event.done >= min(offset, file.size_bytes - CHUNK_BYTES):
                relay.cut()
    with connect(target) as device:
        sent = follow(push(device, [file]))
    assert arrived(tmp_path, file).read_bytes() == file.source.read_bytes()
    # All acknowledged chunks stay, except those that the cut interrupted.
    assert sent <= file.size_bytes - offset + 2 * CHUNK_BYTES


def test_what_cannot_fit_is_refused_before_the_first_byte(device: Device, tmp_path: Path) -> None:
    huge = Upload(tmp_path / "sparse", "a" * 64, 1 << 39)
    with huge.source.open("wb") as file:
        os.ftruncate(file.fileno(), huge.size_bytes)
    with pytest.raises(DeviceFull, match=r"550 GB to send, "):
        follow(push(device, [huge]))
    assert not arrived(tmp_path, huge).exists()


def test_a_source_that_goes_away_is_named(device: Device, tmp_path: Path) -> None:
    gone = Upload(tmp_path / "gone", "b" * 64, 5)
    with pytest.raises(CorruptBundle, match="gone: cannot be read"):
        follow(push(device, [gone]))
