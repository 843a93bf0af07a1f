"""The interface of transports. They start commands on a target and put files there, and know nothing of the agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from toolkit.errors import DeviceFull
from toolkit.units import size_text

PromptSecret = Callable[[str], str]
Pace = Callable[[int], None]
End = Callable[[int], int]


class Process(Protocol):
    """A command that runs on the target, with our ends of its standard streams."""

    def send(self, data: bytes) -> None:
        """Write to its stdin. Raises HostUnreachable when the link is gone."""

    def close_stdin(self) -> None: ...

    def lines(self) -> Iterator[bytes]:
        """Give its stdout line by line, without line ends, as the lines arrive, until end of file.

        Raises HostUnreachable when the link breaks.
        """

    def wait(self) -> int:
        """Wait for its end, after reading its stdout; return its exit status (128 + n when signal n killed it)."""

    def stderr_tail(self) -> str:
        """The last 8 KiB of its stderr."""

    def kill(self) -> None: ...


class Transport(Protocol):
    """One open connection to a target.

    Paths have slashes; a relative one counts from the login folder, `~/` is accepted too, and so are Windows' drives.
    Every method raises DeviceError's children, never the library's own exceptions. `windows` tells if commands there
    have Windows' names and paths; `shell_name` names, for people, the shell that reads them.
    """

    windows: bool

    @property
    def shell_name(self) -> str: ...

    def start(self, argv: Sequence[str]) -> Process:
        """Start a command in the login folder."""

    def put(
        self,
        source: Path,
        destination: str,
        offset: int = 0,
        end: End | None = None,
        pace: Pace | None = None,
    ) -> Iterator[int]:
        """Write a local file from byte `offset` on to the same offset of `destination`, in constant memory.

        `end` gets the offset at which a step begins and returns the offset to stop at, which may come nearer from step
        to step; with `end`, the rest of `destination` stays as it is. A missing `destination` is created. Bytes are
        written only as the iterator is read: it gives the number of bytes of every step, and all are written when it
        ends; an abandoned one leaves a part of them. `pace` is called with the number of bytes before they are sent,
        and may wait. Raises DeviceFull when the target's disk has no room.
        """

    def make_dirs(self, path: str) -> None:
        """Create a folder and its parents, private to the user (mode 0700); existing ones stay as they are."""

    def size(self, path: str) -> int | None:
        """The size of a file in bytes; None when there is no such file."""

    def close(self) -> None: ...


def finish(process: Process) -> tuple[list[str], int]:
    """Give a command no input; return the lines of its stdout and its exit status."""
    process.close_stdin()
    return [line.decode("utf-8", "replace") for line in process.lines()], process.wait()


def device_full(where: str, needs_bytes: int, free_bytes: int | None, folder: str) -> DeviceFull:
    """The error for a disk without room; `free_bytes` is None where the device can't tell."""
    free = "no space left" if free_bytes is None else f"{size_text(free_bytes)} free"
    return DeviceFull(
        f"{where}: disk full: needs {size_text(needs_bytes)}, {free} on {folder}",
        "remove old releases there, or set install_root to a folder on a larger disk",
    )
