"""The end of the process: signals that end it, standard streams that can't be written, and the log of a bug."""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from toolkit import __version__

# The names of the signals that end the work as Ctrl-C does, and the words for each. Windows has no SIGHUP.
_ENDING = {"SIGTERM": "terminated", "SIGHUP": "hung up"}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class Signalled(SystemExit):
    """A signal asks this process to end: the exit code is 128 and the signal's number, as shells count."""

    def __init__(self, name: str) -> None:
        super().__init__(128 + getattr(signal, name))
        self.words = _ENDING[name]


class Ending:
    """The signal that has come, if one has."""

    signalled: Signalled | None = None


@contextmanager
def ending_by_signals() -> Iterator[Ending]:
    """Have SIGTERM and SIGHUP raise `Signalled` within the block, so that everything cleans up after itself.

    A further signal doesn't disturb the cleaning. A signal that was ignored, as `nohup` has it, stays ignored.
    """
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    numbers = {getattr(signal, name): name for name in _ENDING if hasattr(signal, name)}
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, _frame: FrameType | None) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)
        ending.signalled = Signalled(numbers[number])
        raise ending.signalled

    for number in ours:
        signal.signal(number, end)
    try:
        yield ending
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def open_closed_streams() -> None:
    """Put something in place of standard streams that the caller has closed, before an open file takes their numbers.

    What is written to a closed stdout fails, as with other programs; a closed stderr swallows it.
    """
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def stdout_trouble(failed: OSError | None = None) -> OSError | None:
    """The error that writing the rest of stdout gives, if it does; stdout then swallows what is left.

    `failed` is an error that may have come from stdout, which then has forgotten the rest: a line end is tried.
    """
    try:
        descriptor = sys.stdout.fileno()
    except ValueError:
        # Something in memory, which takes everything.
        return None
    try:
        sys.stdout.flush()
        if failed is not None and failed.filename is None and _may_be_of(descriptor, failed):
            os.write(descriptor, b"\n")
    except OSError as exc:
        _swallow(descriptor)
        return exc
    return None


def _may_be_of(descriptor: int, failed: OSError) -> bool:
    """Tell if writing to such a thing can fail so: a pipe breaks, and only files and devices become full."""
    mode = os.fstat(descriptor).st_mode
    broken = failed.errno == errno.EPIPE
    return broken if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else failed.errno in _FULL and not os.isatty(descriptor)


def swallow_stderr() -> None:
    """Have a stderr that can't be written swallow what is left: talk that is lost ends no work."""
    with suppress(OSError, ValueError):
        _swallow(sys.stderr.fileno())


def _swallow(descriptor: int) -> None:
    # At its end the interpreter tries to write the rest again, and would complain.
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)


def _logs() -> str:
    from toolkit.config import data_dir

    return str(data_dir() / "logs")


def keep_bug_log(text: str) -> Path | None:
    """Write the log of a bug among edgephi's data, else into a temporary folder; None when neither can be written."""
    import tempfile

    name = f"bug-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
    for logs in (_logs, tempfile.gettempdir):
        with suppress(Exception):
            path = Path(logs()) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"edgephi {__version__}, Python {sys.version}\n\n{text}", encoding="utf-8")
            return path
    return None
