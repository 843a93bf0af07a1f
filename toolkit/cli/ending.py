"""The end of the process: signals that end it, standard streams that can't be written, and the log of a bug."""

from __future__ import annotations

import os
import signal
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


def stdout_trouble() -> OSError | None:
    """The error that writing the rest of stdout gives, if it does; stdout then swallows what is left."""
    try:
        sys.stdout.flush()
    except OSError as exc:
        _swallow(sys.stdout.fileno())
        return exc
    return None


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
