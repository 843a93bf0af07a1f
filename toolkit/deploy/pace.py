"""The pace of sending: a number of connections that is worth it, and a limit on their rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# More connections would be an assault on a small board's sshd (MaxStartups is 10).
MOST_CONNECTIONS = 4
# A connection that adds less isn't worth its CPU time at the other end.
_WORTH = 1.15


class Ramp:
    """Decides if another connection is worth trying, by the rates of one connection, of two and so on.

    Packet loss holds a single TCP connection far below the link's capacity; on a full link another one gains nothing.
    """

    def __init__(self) -> None:
        self._rates: list[float] = []

    def another(self, rate: float) -> bool:
        """Tell if one more is worth trying. `rate`, in any unit, is that of one connection first, then of two …"""
        grew = not self._rates or rate > _WORTH * self._rates[-1]
        self._rates.append(rate)
        return grew and rate > 0 and len(self._rates) < MOST_CONNECTIONS


class Throttle:
    """A limit on the rate of several threads together: each pays before it sends, and waits until it may.

    Unused bytes aren't saved up: after a pause the rate is the limit again, and no more.
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
