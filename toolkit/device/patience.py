"""The time that a device may take: each operation has a limit, which only real progress extends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from toolkit.agent.messages import Completed, Event, Held, ModelReady, Prefill, ProgressMade, Scored, TokenText, Waiting
from toolkit.device.transport import Process
from toolkit.errors import NoProgress
from toolkit.untrusted import SLOWEST_BYTES_PER_S

# The longest wait for others that hold the device's lock, and the longest whole operation, whatever it tells.
WAITING_S, WHOLE_S = 6 * 3600.0, 24 * 3600.0
# A program that has given its result ends within that time.
ENDING_S = 60.0
_MOST_COUNTS = 64
_SHORTEST_S = 0.05


class Patience:
    """A count of the time that is spent waiting: `give_up` is called, by another thread, when `limit_s` have passed.

    `renew` begins the limit again, in full or in part. Time outside of `waiting` doesn't count: a person may be typing.
    """

    def __init__(self, limit_s: float, give_up: Callable[[], object]) -> None:
        self.is_over = False
        self._limit_s = self._left_s = limit_s
        self._whole_s = WHOLE_S
        self._give_up = give_up
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> Patience:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block."""
        began = time.monotonic()
        with self._changed:
            self._deadline = began + min(self._left_s, self._whole_s)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="edgephi-patience", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._deadline = None
            spent_s = time.monotonic() - began
            self._left_s -= spent_s
            self._whole_s -= spent_s

    def renew(self, seconds: float | None = None) -> None:
        """Give time again: all of the limit, or so many seconds of it."""
        more = self._limit_s if seconds is None else seconds
        self._left_s = min(self._limit_s, max(self._left_s, 0.0) + more)

    def extend(self, limit_s: float) -> None:
        """Have a longer limit from now on, once."""
        if limit_s > self._limit_s:
            self._left_s += limit_s - self._limit_s
            self._limit_s = limit_s

    def _watch(self) -> None:
        # A deadline is never earlier than one before it would have been: nobody has to wake this thread but at the end.
        with self._changed:
            while not self._closed:
                left_s = min(self._left_s, self._whole_s)
                if self._deadline is not None:
                    left_s = self._deadline - time.monotonic()
                    if left_s <= 0:
                        self.is_over = True
                        break
                self._changed.wait(max(left_s, _SHORTEST_S))
        if self.is_over:
            self._give_up()


class Progressing:
    """The judge of what an agent says: it renews a `Patience` for what brings the operation nearer to its end.

    Counts that repeat, go back or exceed their total aren't progress, and neither are more kinds of counts than any
    operation has. Bytes renew it by the time that they take at the slowest rate.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._counts: dict[tuple[str, float | None], float] = {}

    def heard(self, event: Event) -> None:
        match event:
            case ProgressMade():
                self._count(event)
            case Waiting():
                self._patience.extend(WAITING_S)
            case Held() | ModelReady() | Prefill() | TokenText() | Scored() | Completed():
                self._patience.renew()

    def _count(self, event: ProgressMade) -> None:
        key = (event.label, event.total)
        before = self._counts.get(key)
        too_many = before is None and len(self._counts) >= _MOST_COUNTS
        if too_many or event.done <= (-1.0 if before is None else before) or event.done > (event.total or event.done):
            return
        self._counts[key] = event.done
        if event.unit == "bytes" and before is not None:
            self._patience.renew((event.done - before) / SLOWEST_BYTES_PER_S)
        else:
            self._patience.renew()


def no_progress(where: str, *, heard: bool) -> NoProgress:
    """The error for a device that took longer than it may."""
    said = "its agent said things, but nothing came nearer to an end" if heard else "its agent said nothing"
    return NoProgress(
        f"{where}: no progress: {said}",
        f"edgephi doctor {where} looks at the device; the same command then goes on where this one stopped",
    )


@contextmanager
def killed_after(process: Process, limit_s: float) -> Iterator[None]:
    """Kill a process when the block takes longer."""
    timer = threading.Timer(limit_s, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def wait_for_end(process: Process) -> int:
    """Wait for the end of a program that has given its result; end it if that takes long. Returns its exit status."""
    with killed_after(process, ENDING_S):
        return process.wait()
