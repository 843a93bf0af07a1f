"""The protocol of both sides: one JSON line a message, and failures that the host can word."""

from __future__ import annotations

import json
import re
import signal
import sys
from typing import Any

PROTOCOL = 1
# The environment variable that names the file with a child's request.
CHILD_REQUEST = "EDGEPHI_AGENT_REQUEST_FILE"
HEX64 = re.compile(r"[0-9a-f]{64}\Z")
CHUNK = 1 << 20
SIGKILL, SIGILL = 9, 4  # Windows' signal module hasn't got the first


class AgentFailure(Exception):
    """A failure that the host can word: a code from a short list, a message, and a hint what to do."""

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


def emit(kind: str, payload: Any) -> None:
    sys.stdout.write(json.dumps({"protocol": PROTOCOL, kind: payload}) + "\n")
    sys.stdout.flush()


def progress(label: str, done: int, total: int, unit: str = "steps") -> None:
    emit("event", {"type": "progress", "label": label, "done": done, "total": total, "unit": unit})


# The longest piece of another program's words that goes into a message.
MOST_WORDS = 400


def one_line(text: str) -> str:
    """A text on one line, without characters that would steer a terminal, cut to MOST_WORDS."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MOST_WORDS else line[: MOST_WORDS - 1] + "…"


def last_words(text: str) -> str:
    """The last line of a program's words that says something, as `one_line` gives it; '' when it said nothing."""
    return next(filter(None, map(one_line, reversed(text.splitlines()))), "")


NO_MEMORY = "most often that is the out-of-memory killer: plan a smaller context or a smaller recipe"
NO_INSTRUCTION = "this CPU lacks an instruction that the runtime's wheel uses"
# Windows has no signals: a process that dies of an exception ends with the exception's number.
WINDOWS_DEATHS: dict[int, tuple[str, str | None]] = {
    0xC0000005: ("an access violation", None),
    0xC0000017: ("a lack of memory", "plan a smaller context or a smaller recipe"),
    0xC000001D: ("an illegal instruction", NO_INSTRUCTION),
    0xC0000409: ("its own abort", None),
}


def death_of(status: int) -> tuple[str, str | None] | None:
    """The cause that ended a process, and what to do; None for a process that ended by itself."""
    if status >= 0:
        return WINDOWS_DEATHS.get(status)
    hints = {SIGKILL: NO_MEMORY, SIGILL: NO_INSTRUCTION}
    return signal.Signals(-status).name, hints.get(-status)
