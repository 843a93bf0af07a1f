"""Send files to a target: only the pieces that it lacks, over as many connections as help."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from toolkit.agent.requests import Discard, FindMissing, ReuseBlocks, WantedFile
from toolkit.bundle import Block
from toolkit.bundle.blocks import as_json
from toolkit.deploy.pace import Ramp, Throttle
from toolkit.device import Device, Transport
from toolkit.device.transport import Pace
from toolkit.errors import CorruptBundle, DeviceError, DeviceFull, ToolkitError
from toolkit.events import Progress, Service, Step
from toolkit.units import size_text

# The room that the store and the runtime's own files may need on top of the sent files.
SPARE_BYTES = 64 * 2**20
# Files are compared in chunks, but sent in pieces: opening a file costs round trips, so pieces are larger.
CHUNK_BYTES = 2**20
PIECE_BYTES = 32 * CHUNK_BYTES
# The rate is measured over this time, or three times as long if fewer bytes went, before another connection is tried:
# bytes are acknowledged in large steps, and a slow link's rate can't be told from a few of them.
_STEP_BYTES = 255 * 1024
_RAMP_S, _RAMP_BYTES = 2.0, 8 * _STEP_BYTES
# The interval of progress reports: one for each acknowledgement would wake a thread that the senders have to wait for.
_TELL_S = 0.02


@dataclass(frozen=True)
class Upload:
    """A local file on its way into the target's store."""

    source: Path
    sha256: str
    size_bytes: int
    # The parts of a large file, which other files on the target may have too.
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of a file that the target lacks."""

    file: Upload
    offset: int
    length: int


def push(device: Device, files: Sequence[Upload]) -> Service[int]:
    """Send the files whose content the target hasn't yet, and return the number of bytes that were sent.

    A push that broke off earlier goes on: chunks that arrived whole aren't sent again. While somebody else pushes
    there, this push waits. All connections together keep to the device's `limit_bytes_per_s`. Raises DeviceFull before
    the first byte, and HostUnreachable when the link breaks.
    """
    by_hash = {file.sha256: file for file in files}
    artifacts: list[WantedFile] = [{"sha256": file.sha256, "size_bytes": file.size_bytes} for file in by_hash.values()]
    hold = yield from device.hold(artifacts, CHUNK_BYTES)
    try:
        state = hold.found
        missing = state.of(by_hash, device.target.name)
        if (yield from _reuse(device, [by_hash[entry.sha256] for entry in missing if not entry.chunks])):
            state = device.ask(FindMissing(artifacts=artifacts, chunk_bytes=CHUNK_BYTES))
            missing = state.of(by_hash, device.target.name)
        pieces = [piece for entry in missing for piece in lacking(by_hash[entry.sha256], entry.chunks)]
        total = sum(piece.length for piece in pieces)
        _refuse_if_full(device, total, state.free_bytes)
        sending = f"push {len(missing)} of {len(files)} files, {size_text(total)}"
        yield Step(f"{device.target.name}: {sending}", skipped=not pieces)
        yield from _Sending(device, pieces).run()
        return total
    finally:
        hold.release()


def _refuse_if_full(device: Device, total: int, free: int) -> None:
    if total + SPARE_BYTES > free and total:
        raise DeviceFull(
            f"{device.target.name}: {size_text(total)} to send, {size_text(free)} free "
            f"under {device.target.install_root}",
            "free some space there, or set `install_root` in the target's file to a larger disk",
        )


def _reuse(device: Device, files: Sequence[Upload]) -> Service[int]:
    """Have the device copy the blocks of these files that other files there have; returns the bytes of those."""
    wanted: list[WantedFile] = [
        {
            "sha256": file.sha256,
            "size_bytes": file.size_bytes,
            "blocks": as_json(file.blocks),
        }
        for file in files
        if file.blocks
    ]
    if not wanted:
        return 0
    found = yield from device.call(ReuseBlocks(files=wanted))
    if found.reused_bytes:
        yield Step(f"{device.target.name}: {size_text(found.reused_bytes)} are there already, in other releases")
    return found.reused_bytes


def lacking(file: Upload, chunks: Sequence[str]) -> Iterator[Piece]:
    """The pieces of a file that the target lacks; `chunks` are the SHA-256 of the chunks that arrived, right or wrong.

    An empty file is one piece of no bytes.
    """
    start: int | None = None
    for index, offset in enumerate(range(0, max(1, file.size_bytes), CHUNK_BYTES)):
        there = index < len(chunks) and chunks[index] == _chunk_sha256(file, offset)
        if start is not None and (there or offset - start == PIECE_BYTES):
            yield Piece(file, start, offset - start)
            start = None
        if start is None and not there:
            start = offset
    if start is not None:
        yield Piece(file, start, file.size_bytes - start)


def _chunk_sha256(file: Upload, offset: int) -> str:
    with file.source.open("rb") as source:
        source.seek(offset)
        return hashlib.sha256(source.read(CHUNK_BYTES)).hexdigest()


@dataclass
class _Range:
    """A piece that a connection is sending, from `position` to `end`; `end` comes nearer when another one takes a part
    of the rest."""

    file: Upload
    position: int
    end: int

    @property
    def left(self) -> int:
        return self.end - self.position


class _Sending:
    """Connections, each in a thread of its own, that take pieces from one queue and, when it is empty, halves of each
    other's pieces.

    The device's own connection holds the lock there: when it breaks, all of them end. When another one breaks, the rest
    of its piece goes back into the queue.
    """

    def __init__(self, device: Device, pieces: Sequence[Piece]) -> None:
        self._device = device
        self._waiting = deque(_Range(piece.file, piece.offset, piece.offset + piece.length) for piece in pieces)
        self._under_way: list[_Range] = []
        self._sharing = threading.Lock()
        self._total = sum(piece.length for piece in pieces)
        self._done = 0
        self._stop = threading.Event()
        self._pace: Pace | None = None
        if device.limit_bytes_per_s is not None:
            self._pace = Throttle(device.limit_bytes_per_s, sleep=self._stop.wait).pay
        # A user who sets a limit wants to use less of the link, not more connections.
        self._may_grow = device.limit_bytes_per_s is None and device.target.transport != "local"
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def run(self) -> Service[None]:
        try:
            while self._waiting and self._error is None:
                self._add(self._over_the_devices_own)
                yield from self._watch()
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        if self._error is not None:
            raise self._error

    def _watch(self) -> Service[None]:
        """Report progress, and try further connections, until every thread has ended."""
        ramp, told = Ramp(), 0
        since, before = time.monotonic(), self._done
        working: threading.Thread | None = self._threads[-1]
        while working is not None:
            working.join(_TELL_S)
            working = next((thread for thread in self._threads if thread.is_alive()), None)
            done = self._done
            if done > told:
                told = done
                yield Progress("push", done, self._total, "bytes")
            elapsed, moved = time.monotonic() - since, done - before
            if working and self._may_grow and elapsed >= _RAMP_S * (1 if moved >= _RAMP_BYTES else 3):
                rate = moved / elapsed
                self._may_grow = ramp.another(rate)
                # The rest has to be worth a handshake.
                if self._may_grow and self._total - done > rate * _RAMP_S:
                    self._add(self._over_another)
                since, before = time.monotonic(), done

    def _add(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _over_the_devices_own(self) -> None:
        try:
            self._send(self._device.transport)
        except BaseException as exc:
            self._fail(exc)

    def _over_another(self) -> None:
        try:
            with closing(self._device.dial()) as another:
                self._send(another)
        except (DeviceFull, CorruptBundle) as exc:
            self._fail(exc)
        except ToolkitError:
            # A server may limit connections, and a link may break; the connections that are there do the work.
            self._may_grow = False
        except BaseException as exc:
            self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        self._error = self._error or exc
        self._stop.set()

    def _send(self, transport: Transport) -> None:
        while (mine := self._next()) is not None:
            arrived = mine.position
            try:
                for count in self._put(transport, mine):
                    arrived += count
                    with self._sharing:
                        self._done += count
                    if self._stop.is_set():
                        return
            finally:
                with self._sharing:
                    self._under_way.remove(mine)
                    if arrived < mine.end:
                        self._waiting.append(_Range(mine.file, arrived, mine.end))

    def _next(self) -> _Range | None:
        """Take a piece that nobody has begun, else half of the longest rest; None if it is too short, or at a stop."""
        with self._sharing:
            if self._stop.is_set():
                return None
            if self._waiting:
                mine = self._waiting.popleft()
            else:
                longest = max(self._under_way, key=lambda other: other.left, default=None)
                if longest is None or longest.left < 2 * CHUNK_BYTES:
                    return None
                middle = longest.position + longest.left // 2
                mine = _Range(longest.file, middle, longest.end)
                longest.end = middle
            self._under_way.append(mine)
            return mine

    def _put(self, transport: Transport, mine: _Range) -> Iterator[int]:
        def end(position: int) -> int:
            with self._sharing:
                # The step that begins now is sent, even if another connection takes the rest.
                mine.position = min(position + _STEP_BYTES, mine.end)
                return mine.end

        destination = self._device.path("incoming", f"{mine.file.sha256}.part")
        return transport.put(mine.file.source, destination, mine.position, end, self._pace)


def discard(device: Device, files: Sequence[Upload]) -> None:
    """Remove pushed files that aren't for the store from the device; when the link is broken they stay."""
    with suppress(DeviceError):
        device.ask(Discard(sha256=[file.sha256 for file in files]))
