"""An agent's lines: which of them are messages, and what those tell while an operation goes on.

What an operation ends with is `answers`' business.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictStr, model_validator

from toolkit.agent.answers import Missing, Nanoseconds, Said, parse
from toolkit.catalog.facts import Count, Number, Text, UnixTime

# A line holds a few kilobytes; a list of manifests or of log-likelihoods some hundred. More isn't our agent's.
LONGEST_LINE_BYTES = 16 * 2**20
_DEEPEST = 32
# How a message begins; what a login shell or a server prints by itself stands before the first one.
_FIRST_WORD = b'{"protocol": '
_MOST_NOISE_BYTES = 64 * 1024


class ProgressMade(Said):
    label: Text
    done: Annotated[float, Field(strict=True, ge=0, lt=2**60)]
    total: Annotated[float, Field(strict=True, ge=0, lt=2**60)] | None
    unit: Literal["bytes", "steps"]


class Holder(Said):
    by: Text
    op: Text
    since_unix_s: UnixTime


class Waiting(Said):
    """Somebody else has the lock; who, isn't known in the moment before they have written it down."""

    holder: Holder | None


class Warned(Said):
    """Something the user should know although the work goes on."""

    text: Text


class Authorize(Said):
    """One of the sources that a pull was given, by number, wants to know who asks."""

    source: Count


class Held(Said):
    """The lock is ours, and that much of what was asked for is missing."""

    found: Missing


class ModelReady(Said):
    load_ns: Nanoseconds
    context_tokens: Count


class Forgot(Said):
    """The oldest turns of a conversation, which its context has no room for."""

    turns: Count


class Prefill(Said):
    tokens: Count


class TokenText(Said):
    text: Text


class TurnEnd(Said):
    """An answer is over. `token_ns` counts from the submitted prompt, one for every token."""

    prompt_tokens: Count
    token_ns: tuple[Nanoseconds, ...]
    stopped: StrictBool

    @model_validator(mode="after")
    def _in_order(self) -> TurnEnd:
        if any(late < early for early, late in zip(self.token_ns, self.token_ns[1:], strict=False)):
            raise ValueError("time runs backwards in token_ns")
        return self


class Scored(Said):
    """How likely a continuation is, in nats, and whether it is what the model would say."""

    log_likelihood: Number
    greedy: StrictBool


class Completed(Said):
    text: Annotated[str, Field(strict=True, max_length=2**20)]


@dataclass(frozen=True)
class Result:
    """What an operation ends with, not looked at yet."""

    payload: dict[str, Any]


class Failure(Said):
    """Why an operation ended, by a code from the agent's short list."""

    code: Text = "unknown"
    message: StrictStr
    hint: StrictStr | None = None


Event = (
    ProgressMade
    | Waiting
    | Warned
    | Authorize
    | Held
    | ModelReady
    | Forgot
    | Prefill
    | TokenText
    | TurnEnd
    | Scored
    | Completed
)
_EVENTS: dict[str, type[Event]] = {
    "progress": ProgressMade,
    "waiting": Waiting,
    "warning": Warned,
    "authorize": Authorize,
    "held": Held,
    "ready": ModelReady,
    "forgot": Forgot,
    "prefill": Prefill,
    "token": TokenText,
    "turn_end": TurnEnd,
    "score": Scored,
    "completion": Completed,
}


def without_noise(lines: Iterator[bytes]) -> Iterator[bytes]:
    """From the agent's first word on: a login shell or a server may print something by itself before it.

    Where that word never comes, the last of what was said stands for it.
    """
    noise_bytes, last = 0, b""
    for line in lines:
        _, mark, rest = line.partition(_FIRST_WORD)
        noise_bytes, last = noise_bytes + len(line), mark + rest or line
        if mark or noise_bytes > _MOST_NOISE_BYTES:
            break
    if last:
        yield last
    yield from lines


def decode(line: bytes, protocol: int) -> tuple[str, dict[str, Any]]:
    """A line to its kind (`event`, `result` or `error`) and what it says. Raises ValueError for anything else."""
    if len(line) > LONGEST_LINE_BYTES:
        raise ValueError(f"a line of more than {LONGEST_LINE_BYTES} bytes")
    try:
        message = json.loads(line, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    if not isinstance(message, dict) or message.get("protocol") != protocol:
        raise ValueError("another protocol")
    kind = next((kind for kind in ("event", "result", "error") if kind in message), None)
    if kind is None or not isinstance(message[kind], dict):
        raise ValueError("neither event nor result nor error")
    return kind, _printable(message[kind], _DEEPEST)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} isn't a number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _printable(value: Any, depth: int) -> Any:
    """The same, without characters that would steer a terminal; line ends and tabs stay."""
    if isinstance(value, str):
        if value.isprintable():
            return value
        return "".join("\ufffd" if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs") else c for c in value)
    if isinstance(value, dict | list) and depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {_printable(key, depth): _printable(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item, depth - 1) for item in value]
    return value


def parse_event(payload: dict[str, Any], who: str) -> Event | None:
    """An event; None for one that a newer agent may know. Raises AgentError."""
    kind = payload.get("type")
    model = _EVENTS.get(kind) if isinstance(kind, str) else None
    return None if model is None else parse(model, payload, who, f"('{kind}')")
