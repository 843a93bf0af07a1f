"""What an agent says, parsed once: typed, bounded, and refused in words when it can't be right.

A device may be broken, may be somebody else's, and may lie: nothing of it is used before it has been through here.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError, model_validator

from toolkit.bundle import Manifest, Sha256
from toolkit.distrust import LARGEST_MANIFEST_BYTES, LARGEST_SIGNATURE_BYTES, MOST_SIGNATURES
from toolkit.errors import AgentError

# A line holds a few kilobytes; a list of manifests or of log-likelihoods some hundred. More isn't our agent's.
LONGEST_LINE_BYTES = 16 * 2**20
_DEEPEST = 32
_HINT = "is it edgephi's agent that answers there? `edgephi doctor` looks at it step by step"

Text = Annotated[str, Field(strict=True, max_length=4096)]
Lock = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**40)]
Bytes = Annotated[int, Field(strict=True, ge=0, lt=2**60)]
Nanoseconds = Annotated[int, Field(strict=True, ge=0, lt=2**60)]
# Of the years 1970 to 2242: what a clock tells has to be one that can be written as a date.
UnixTime = Annotated[float, Field(strict=True, ge=0, lt=2**33)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Answer(_Said):
    """The result of the operation `op`."""

    op: ClassVar[str]


class Settled(Answer):
    """Whether an agent that was sent stood there whole already."""

    op: ClassVar[str] = "settle"
    was_whole: StrictBool


class Lacking(_Said):
    """A file that isn't on the device, and the SHA-256 of every chunk that arrived of it, right or wrong."""

    sha256: Sha256
    chunks: Annotated[tuple[Sha256, ...], Field(max_length=2**20)]


class Missing(Answer):
    op: ClassVar[str] = "missing"
    installed: StrictBool
    missing: tuple[Lacking, ...]
    free_bytes: Bytes

    def of(self, asked: Collection[str], who: str) -> tuple[Lacking, ...]:
        """The missing files, each one of those that were asked for. Raises AgentError for any other."""
        names = [entry.sha256 for entry in self.missing]
        strange = [name for name in names if name not in asked or names.count(name) > 1]
        if strange:
            raise AgentError(f"{who}: the agent lacks a file that it wasn't asked for: {strange[0][:12]}", _HINT)
        return self.missing


class KeptManifest(Answer):
    """A release's manifest as it stands there, and the signatures beside it, by the names of their files."""

    op: ClassVar[str] = "manifest"
    manifest: Annotated[str, Field(strict=True, max_length=LARGEST_MANIFEST_BYTES)]
    signatures: Annotated[
        dict[Text, Annotated[str, Field(strict=True, max_length=LARGEST_SIGNATURE_BYTES)]],
        Field(max_length=MOST_SIGNATURES),
    ]


class Pulled(Answer):
    op: ClassVar[str] = "pull"
    files: Count
    pulled_bytes: Bytes


class InstalledFile(_Said):
    model_config = ConfigDict(extra="allow")
    size_bytes: Bytes


class InstalledManifest(_Said):
    """What every version of a manifest has, and the rest as it came; `Installed.parsed` reads all of it."""

    model_config = ConfigDict(extra="allow")
    name: Text
    artifacts: tuple[InstalledFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(artifact.size_bytes for artifact in self.artifacts)


class Installed(_Said):
    """A release in the device's store."""

    release: Sha256
    manifest: InstalledManifest
    installed_unix_s: UnixTime
    active: StrictBool

    def parsed(self, who: str) -> Manifest:
        """All of its manifest. Raises AgentError when it isn't one that this edgephi reads."""
        return parse(Manifest, self.manifest.model_dump(mode="json"), who, f"about release {self.release[:12]}")


class Active(_Said):
    """A release and the runtime that executes it; neither where nothing is active."""

    release: Sha256 | None
    runtime: Lock | None


class Reused(Answer):
    """Bytes of lacking files that were copied from others on the device."""

    op: ClassVar[str] = "reuse"
    reused_bytes: Bytes


class Pointer(Active):
    """What is active now, and what was before, latest first."""

    pointer_version: int = 1
    previous: tuple[Active, ...]
    activated_unix_s: UnixTime | None = None


class Releases(Answer):
    op: ClassVar[str] = "releases"
    releases: tuple[Installed, ...]
    pointer: Pointer


class RolledBack(Answer):
    op: ClassVar[str] = "rollback"
    release: Sha256


class Provisioned(Answer):
    """`installed` is None when there is no such runtime and nobody asked to make it, True when it was made now."""

    op: ClassVar[str] = "provision"
    installed: StrictBool | None
    packages: tuple[Text, ...] = ()


class FoundPython(_Said):
    """A CPython of the device that a runtime could be made with."""

    path: Text
    version: Annotated[str, Field(pattern=r"^\d{1,4}\.\d{1,4}\.\d{1,4}$")]
    has_ensurepip: StrictBool


class Pythons(Answer):
    op: ClassVar[str] = "pythons"
    pythons: tuple[FoundPython, ...]


class CheckedRelease(_Said):
    release: Sha256
    damaged: tuple[Text, ...]


class Verified(Answer):
    op: ClassVar[str] = "verify"
    releases: tuple[CheckedRelease, ...]
    active: Sha256 | None
    repaired: StrictBool


class PrunedReleases(Answer):
    op: ClassVar[str] = "prune"
    removed: tuple[Sha256, ...]
    kept: tuple[Sha256, ...]
    freed_bytes: Bytes


class Measured(Answer):
    op: ClassVar[str] = "measure"
    read_bytes_per_s: Annotated[float, Field(strict=True, gt=0, lt=1e15)]
    kernels_per_s: Annotated[float, Field(strict=True, gt=0, lt=1e12)] | None


class Generated(Answer):
    """A bundle loaded and generated."""

    op: ClassVar[str] = "check"
    load_ns: Nanoseconds
    generated_tokens: Count


class Continuation(_Said):
    prompt: tuple[Count, ...]
    tokens: tuple[Count, ...]


class ReferenceMade(Answer):
    """Tokens of the windows whose log-probabilities were written, and greedy continuations."""

    op: ClassVar[str] = "reference"
    text_tokens: Count
    windows: tuple[tuple[Count, ...], ...]
    continuations: tuple[Continuation, ...]


class ComparedWindow(_Said):
    nll: Number
    reference_nll: Number
    kld: Annotated[tuple[Number, ...], Field(min_length=1)]
    same_top: Count

    @model_validator(mode="after")
    def _no_more_than_all(self) -> ComparedWindow:
        if self.same_top > len(self.kld):
            raise ValueError(f"{self.same_top} of {len(self.kld)} tokens")
        return self


class Evaluated(Answer):
    op: ClassVar[str] = "evaluate"
    windows: Annotated[tuple[ComparedWindow, ...], Field(min_length=1)]
    matches: tuple[Share, ...]
    stepwise: StrictBool


class Jetson(_Said):
    l4t: Text
    jetpack: Text | None


class ProbeFacts(Answer):
    """The facts of a probe that something depends on. Others travel along as they are, into reports."""

    op: ClassVar[str] = "probe"
    board: Text
    soc: Text | None
    arch: Text
    os: Text
    os_name: Text | None
    kernel: Text
    libc: Text | None
    glibc: Annotated[str, Field(pattern=r"^\d{1,4}\.\d{1,4}$")] | None
    cpu: Text | None
    isa: tuple[Text, ...]
    cores: Annotated[int, Field(strict=True, ge=1, le=2**16)]
    ram_bytes: Bytes | None
    mem_available_bytes: Bytes | None
    free_disk_bytes: Bytes
    storage: Text | None
    storage_device: Text | None
    file_system: Text | None
    python: Annotated[str, Field(pattern=r"^\d{1,4}\.\d{1,4}(\.\d{1,4})?((a|b|rc)\d{1,4})?\+?$")]
    has_ensurepip: StrictBool
    jetson: Jetson | None
    cuda: Text | None
    accelerators: tuple[Text, ...]
    governor: Text | None
    governor_driver: Text | None
    power_mode: Text | None
    power_modes: dict[Text, Count]
    rails_mw: dict[Text, Count]
    temp_c: Annotated[float, Field(strict=True, gt=-300, lt=1000)] | None
    throttled: dict[Text, StrictBool] | None
    load_average: tuple[Number, ...] | None
    clock_unix_s: UnixTime
    install_root: Text
    root_error: Text | None
    root_mode: Annotated[str, Field(pattern=r"^[0-7]{3,6}$")] | None
    root_owned: StrictBool | None


class ProgressMade(_Said):
    label: Text
    done: Annotated[float, Field(strict=True, ge=0, lt=2**60)]
    total: Annotated[float, Field(strict=True, ge=0, lt=2**60)] | None
    unit: Literal["bytes", "steps"]


class Holder(_Said):
    by: Text
    op: Text
    since_unix_s: UnixTime


class Waiting(_Said):
    """Somebody else has the lock; who, isn't known in the moment before they have written it down."""

    holder: Holder | None


class Warned(_Said):
    """Something the user should know although the work goes on."""

    text: Text


class Authorize(_Said):
    """One of the sources that a pull was given, by number, wants to know who asks."""

    source: Count


class Held(_Said):
    """The lock is ours, and that much of what was asked for is missing."""

    found: Missing


class ModelReady(_Said):
    load_ns: Nanoseconds
    context_tokens: Count


class Forgot(_Said):
    """The oldest turns of a conversation, which its context has no room for."""

    turns: Count


class Prefill(_Said):
    tokens: Count


class TokenText(_Said):
    text: Text


class TurnEnd(_Said):
    """An answer is over. `token_ns` counts from the submitted prompt, one for every token."""

    prompt_tokens: Count
    token_ns: tuple[Nanoseconds, ...]
    stopped: StrictBool

    @model_validator(mode="after")
    def _in_order(self) -> TurnEnd:
        if any(late < early for early, late in zip(self.token_ns, self.token_ns[1:], strict=False)):
            raise ValueError("time runs backwards in token_ns")
        return self


class Scored(_Said):
    """How likely a continuation is, in nats, and whether it is what the model would say."""

    log_likelihood: Number
    greedy: StrictBool


class Completed(_Said):
    text: Annotated[str, Field(strict=True, max_length=2**20)]


@dataclass(frozen=True)
class Result:
    """What an operation ends with, not looked at yet."""

    payload: dict[str, Any]


class Failure(_Said):
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
_ANSWERS: dict[str, type[Answer]] = {answer.op: answer for answer in Answer.__subclasses__()}

A = TypeVar("A", bound=Answer)
M = TypeVar("M", bound=BaseModel)


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


def check(op: str, payload: dict[str, Any], who: str) -> None:
    """Raise AgentError unless this can be the answer to an operation."""
    if op in _ANSWERS:
        parse(_ANSWERS[op], payload, who, f"to '{op}'")


def parse(model: type[M], payload: object, who: str, what: str) -> M:
    """Raises AgentError that says what is wrong; `who` is the target's name, `what` follows "answer"."""
    try:
        return model.model_validate(payload)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        found = repr(first["input"])
        found = found if len(found) <= 80 else found[:77] + "…"
        raise AgentError(
            f"{who}: the agent's answer {what} can't be right: {place + ': ' if place else ''}{first['msg']}: {found}",
            _HINT,
        ) from exc
