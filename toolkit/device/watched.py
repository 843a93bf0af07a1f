"""A connection that counts the bytes it sends, and that another thread can cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from toolkit.device.transport import End, Pace, Process, Transport
from toolkit.errors import HostUnreachable


class _WatchedProcess:
    """A process that passes everything on to another one, and calls `forget` when that one has ended or is killed."""

    def __init__(self, process: Process, forget: Callable[[], None]) -> None:
        self._process = process
        self._forget = forget

    def send(self, data: bytes) -> None:
        self._process.send(data)

    def close_stdin(self) -> None:
        self._process.close_stdin()

    def lines(self) -> Iterator[bytes]:
        return self._process.lines()

    def wait(self) -> int:
        try:
            return self._process.wait()
        finally:
            # The system may soon give its number to another process.
            self._forget()

    def stderr_tail(self) -> str:
        return self._process.stderr_tail()

    def kill(self) -> None:
        self._process.kill()
        self._forget()


class WatchedTransport:
    """A transport that passes everything on to another one; `sent_bytes` counts the bytes that `put` has sent."""

    def __init__(self, transport: Transport) -> None:
        self.sent_bytes = 0
        self.windows = transport.windows
        self._transport = transport
        self._process: Process | None = None
        self._is_cut = False

    def cut(self) -> None:
        """End the command that runs and close the connection; a thread that waits for either gets a DeviceError."""
        # The mark comes first: if we don't see a command that is just being started, `start` sees the mark.
        self._is_cut = True
        process = self._process
        if process is not None:
            process.kill()
        self._transport.close()

    @property
    def shell_name(self) -> str:
        return self._transport.shell_name

    def start(self, argv: Sequence[str]) -> Process:
        self._process = process = self._transport.start(argv)
        if self._is_cut:
            process.kill()
            raise HostUnreachable("the connection was closed from this side")
        return _WatchedProcess(process, self._forget)

    def put(
        self,
        source: Path,
        destination: str,
        offset: int = 0,
        end: End | None = None,
        pace: Pace | None = None,
    ) -> Iterator[int]:
        for count in self._transport.put(source, destination, offset, end, pace):
            self.sent_bytes += count
            yield count

    def make_dirs(self, path: str) -> None:
        self._transport.make_dirs(path)

    def size(self, path: str) -> int | None:
        return self._transport.size(path)

    def close(self) -> None:
        self._transport.close()

    def _forget(self) -> None:
        self._process = None
