"""The messages among an agent's lines, and the events that they tell while an operation goes on.

The results of operations are parsed in `answers`.
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

# A line holds a few kilobytes; a list of manifests or of log-likelihoods some hundred. A longer one isn't our agent's.
LONGEST_LINE_BYTES = 16 * 2**20
_DEEPEST = 32
# The beginning of every message; the words that a login shell or a server prints by itself stand before the first one.
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
    """Somebody else has the lock; `holder` is None in the moment before they have written down their name."""

    holder: Holder | None


class Warned(Said):
    """A warning to the user; the work goes on."""

    text: Text


class Authorize(Said):
    """The source of a pull with this number asks for credentials."""

    source: Count


class Held(Said):
    """The lock is ours; `found` lists the missing ones of the requested files."""

    found: Missing


class ModelReady(Said):
    load_ns: Nanoseconds
    context_tokens: Count


class Forgot(Said):
    """The number of a conversation's oldest turns that were dropped because its context has no room for them."""

    turns: Count


class SystemFolded(Said):
    """The chat template has no place for a system message: it leads the first user turn."""


class Prefill(Said):
    tokens: Count


class TokenText(Said):
    text: Text


class TurnEnd(Said):
    """An answer is over. `token_ns` counts from the submitted prompt, one for every token.

    `stopped` tells that the model ended it, `interrupted` that the host did; else it had its full length.
    """

    prompt_tokens: Count
    token_ns: tuple[Nanoseconds, ...]
    stopped: StrictBool
    interrupted: StrictBool = False

    @model_validator(mode="after")
    def _in_order(self) -> TurnEnd:
        if any(late < early for early, late in zip(self.token_ns, self.token_ns[1:], strict=False)):
            raise ValueError("time runs backwards in token_ns")
        return self


class Scored(Said):
    """The log-likelihood of a continuation in nats; `greedy` is True when the model itself would generate it."""

    log_likelihood: Number
    greedy: StrictBool


class Completed(Said):
    text: Annotated[str, Field(strict=True, max_length=2**20)]


@dataclass(frozen=True)
class Result:
    """The result of an operation, not parsed yet."""

    payload: dict[str, Any]


class Failure(Said):
    """The reason for which an operation failed, with a code from the agent's short list."""

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
    | SystemFolded
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
    "system_folded": SystemFolded,
    "prefill": Prefill,
    "token": TokenText,
    "turn_end": TurnEnd,
    "score": Scored,
    "completion": Completed,
}


def without_noise(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The lines from the agent's first message on: a login shell or a server may print something by itself before it.

    If none comes among the first _MOST_NOISE_BYTES, the last line of these takes its place.
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
    """Decode a line to its kind (`event`, `result` or `error`) and payload. Raises ValueError for any other line."""
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
    """The value without characters that would steer a terminal; line ends and tabs stay."""
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
    """Parse an event; None for a type that only a newer agent may know. Raises AgentError."""
    kind = payload.get("type")
    model = _EVENTS.get(kind) if isinstance(kind, str) else None
    return None if model is None else parse(model, payload, who, f"('{kind}')")
