"""toolkit.deploy.pace: the choice to open another connection, and the keeping of a limit."""

from __future__ import annotations

import threading
import time

import pytest

from toolkit.deploy.pace import MOST_CONNECTIONS, Ramp, Throttle


@pytest.mark.parametrize(
    ("rates", "asked"),
    [
        ([10.0, 20.0, 30.0, 40.0], [True, True, True, False]),  # loss: each one adds its own
        ([10.0, 11.0], [True, False]),  # a full link
        ([10.0, 15.0, 16.0], [True, True, False]),
        ([0.0], [False]),  # nothing moves: another one would not either
    ],
)
def test_connections_are_added_while_they_help(rates: list[float], asked: list[bool]) -> None:
    ramp = Ramp()
    assert [ramp.another(rate) for rate in rates] == asked
    assert MOST_CONNECTIONS == 4


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_limit_is_held_and_not_saved_up() -> None:
    clock = Clock()
    throttle = Throttle(1000.0, clock, clock.sleep)
    for _ in range(10):
        throttle.pay(500)
    # The first payment leaves at once; each later one waits for those before it.
    assert clock.now == pytest.approx(100 + 9 * 0.5)
    clock.now += 60
    began = clock.now
    for _ in range(5):
        throttle.pay(500)
    assert clock.now - began == pytest.approx(4 * 0.5)


def test_threads_share_a_limit() -> None:
    throttle = Throttle(1_000_000.0)
    began = time.monotonic()
    threads = [threading.Thread(target=lambda: [throttle.pay(10_000) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began >= 0.38
