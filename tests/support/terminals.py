"""A pseudo-terminal with `edgephi` in its foreground, at which a test types."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.builds import hear_sigint

CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """`said` is all that the terminal got, with plain line ends."""

    def __init__(self, pid: int, terminal: int) -> None:
        self._pid = pid
        self._terminal = terminal
        self._seen = 0
        self.said = ""

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def wait_for(self, text: str, timeout_s: float = 60) -> str:
        """The output that the terminal gets up to `text` and with it, from the end of the last such wait on."""
        deadline = time.monotonic() + timeout_s
        while (found := self.said.find(text, self._seen)) < 0:
            assert self._read(deadline), f"no {text!r} in {self.said[self._seen :]!r}"
        begin, self._seen = self._seen, found + len(text)
        return self.said[begin : self._seen]

    def ended(self, timeout_s: float = 30) -> int:
        """Wait for the end; returns the exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        assert time.monotonic() < deadline, f"still running: {self.said!r}"
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self, deadline: float) -> bool:
        """Read more; False at the end of all, and after the deadline."""
        if not select.select([self._terminal], [], [], max(0, deadline - time.monotonic()))[0]:
            return False
        try:
            part = os.read(self._terminal, 4096)
        except OSError:
            return False
        self.said += part.decode(errors="replace").replace("\r\n", "\n")
        return bool(part)


@contextmanager
def terminal(*words: str) -> Iterator[Terminal]:
    """Run `edgephi` at a terminal of its own; hang up in the end."""
    pid, master = pty.fork()
    if pid == 0:
        hear_sigint()
        os.execv(sys.executable, [sys.executable, "-m", "toolkit", *words])
    try:
        yield Terminal(pid, master)
    finally:
        os.close(master)
