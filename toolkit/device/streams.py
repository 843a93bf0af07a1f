"""The three standard streams of a running command, handled so that none of them can block another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread

from toolkit.errors import HostUnreachable

TAIL_BYTES = 8 * 1024
_SLICE_BYTES = 256 * 1024
_LONGEST_LINE_BYTES = 32 * 2**20


class Feeder:
    """A writer to a command's stdin, in a thread of its own.

    A caller may therefore send any amount before it reads: a command that answers while it reads doesn't deadlock.
    `write` may raise HostUnreachable and nothing else; the next `put` raises it again.
    """

    def __init__(self, write: Callable[[bytes], None], close: Callable[[], None]) -> None:
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._write = write
        self._close = close
        self._error: HostUnreachable | None = None
        Thread(target=self._run, name="edgephi-stdin", daemon=True).start()

    def put(self, data: bytes) -> None:
        """Queue bytes. Raises HostUnreachable when an earlier write found the link gone."""
        if self._error is not None:
            raise self._error
        self._queue.put(data)

    def close(self) -> None:
        """Send end of file once everything queued is written."""
        self._queue.put(None)

    def _run(self) -> None:
        try:
            while (data := self._queue.get()) is not None:
                for start in range(0, len(data), _SLICE_BYTES):
                    self._write(data[start : start + _SLICE_BYTES])
            self._close()
        except HostUnreachable as exc:
            self._error = exc


class Tail:
    """A reader of a stream to its end, in a thread of its own; it keeps the last 8 KiB."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._kept = b""
        self._thread = Thread(target=self._run, name="edgephi-stderr", daemon=True)
        self._thread.start()

    def text(self) -> str:
        return self._kept.decode(errors="replace")

    def finish(self, timeout_s: float) -> None:
        """Wait for the end of the stream, `timeout_s` at most: a background child may hold it open."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while chunk := self._read():
            self._kept = (self._kept + chunk)[-TAIL_BYTES:]


def split_lines(read: Callable[[], bytes]) -> Iterator[bytes]:
    """Give the lines, without `\\n` or `\\r\\n`, of the pieces that `read` returns; it returns b"" at the end.

    A line that grows beyond 32 MiB comes in parts, so that a line that never ends doesn't fill the memory.
    """
    pieces: list[bytes] = []
    while chunk := read():
        head, *rest = chunk.split(b"\n")
        pieces.append(head)
        if not rest and sum(map(len, pieces)) > _LONGEST_LINE_BYTES:
            yield b"".join(pieces)
            pieces = []
        for piece in rest:
            yield b"".join(pieces).removesuffix(b"\r")
            pieces = [piece]
    if last := b"".join(pieces):
        yield last
