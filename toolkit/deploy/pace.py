"""How fast to send: whether another connection is worth it, and how to stay below a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# More than this many are an assault on a small board's sshd (MaxStartups is 10).
MOST_CONNECTIONS = 4
# A connection that adds less isn't worth its CPU time at the other end.
_WORTH = 1.15


class Ramp:
    """Told the rate of one connection, of two and so on, says whether another one is worth trying.

    Loss holds a single TCP connection far below what the link carries; a link that is full gains nothing.
    """

    def __init__(self) -> None:
        self._rates: list[float] = []

    def another(self, rate: float) -> bool:
        """`rate` is in any unit, with as many connections as this was asked for times before, and one."""
        grew = not self._rates or rate > _WORTH * self._rates[-1]
        self._rates.append(rate)
        return grew and rate > 0 and len(self._rates) < MOST_CONNECTIONS


class Throttle:
    """A limit for several threads together; who pays before sending waits as long as it takes.

    Nothing is saved up: after a pause the rate is the limit again, and no more.
    """

    def __init__(
        self,
        bytes_per_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rate = bytes_per_s
        self._clock, self._sleep = clock, sleep
        self._free_at = clock()
        self._lock = threading.Lock()

    def pay(self, n_bytes: int) -> None:
        with self._lock:
            begin = max(self._clock(), self._free_at)
            self._free_at = begin + n_bytes / self._rate
        self._sleep(max(0.0, begin - self._clock()))
