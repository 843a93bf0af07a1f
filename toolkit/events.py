"""Progress, steps and warnings that services yield while they work; only the cli draws them.

A service is a generator: `result = yield from deploy(...)` inside services, `follow(deploy(...))` in the cli.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """A stage began (`text`), or was found already done (`skipped`)."""

    text: str
    skipped: bool = False


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of the stage named `label`; `total` is None while unknown."""

    label: str
    done: float
    total: float | None
    unit: Literal["bytes", "steps"] = "steps"


@dataclass(frozen=True)
class Warning_:
    """Something the user should know although the work goes on."""

    text: str


@dataclass(frozen=True)
class Token:
    """A piece of generated text."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The work on one of several devices has ended: well, or with an error."""

    seconds: float
    error: str | None = None


@dataclass
class Question:
    """A step that needs the user's consent: the service goes on with it only if `granted` is true after the yield.

    `option` is the one of the command line that gives it beforehand.
    """

    text: str
    option: str
    granted: bool = False


@dataclass(frozen=True)
class DeviceEvent:
    """An event on one device, from a service that works on several at once."""

    target: str
    event: Step | Progress | Warning_ | Token | Question | Ended


Event = Step | Progress | Warning_ | Token | DeviceEvent | Question
Service = Generator[Event, None, T]


_listener: ContextVar[Callable[[Event], object] | None] = ContextVar("listener", default=None)


def announce(event: Event) -> None:
    """Tell an event at once, from code that isn't a service: a login may wait for somebody who has to read something.

    Nobody hears it in a thread or a program that hasn't called `listening`.
    """
    hear = _listener.get()
    if hear is not None:
        hear(event)


@contextmanager
def listening(hear: Callable[[Event], object]) -> Iterator[None]:
    """Have `hear` called with the events that are announced in this thread."""
    token = _listener.set(hear)
    try:
        yield
    finally:
        _listener.reset(token)


def drain(service: Service[T], hear: Callable[[Event], object] | None = None) -> T:
    """Run a service to its end, tell `hear` what it yields, return what it returns.

    When `hear` raises, the service is closed before the exception goes on, so that no garbage collector has to do it.
    """
    try:
        while True:
            try:
                event = next(service)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if hear is not None:
                hear(event)
    finally:
        service.close()
