"""Requests to an agent: one class for each of its operations, with the answer that the operation gives.

Fields have the names, and the values, that stand in the JSON: kits hold the same messages, and the agent itself lists
the same keys (`OPS` in `agent/device/main.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar, Final, Generic, NotRequired, TypedDict, TypeVar, cast, get_args

from pydantic import BaseModel

from toolkit.agent import answers
from toolkit.agent.archive import PROTOCOL
from toolkit.catalog import Workload
from toolkit.catalog.settings import RuntimeSettings
from toolkit.metrics.report import Run

A = TypeVar("A", bound=BaseModel)


class Omitted(Enum):
    """The single value of a field that is left out: the JSON hasn't its key. None isn't left out: it becomes null."""

    OMITTED = "omitted"


OMITTED: Final = Omitted.OMITTED
# A file's parts, each as its length in bytes and its SHA-256.
BlockList = Sequence[Sequence[int | str]]


class WantedFile(TypedDict):
    """A file that a device is to have. `blocks` are the parts of it that other files there may have."""

    sha256: str
    size_bytes: int
    blocks: NotRequired[BlockList]


class SentWheel(TypedDict):
    """A wheel that was pushed, as incoming/<sha256>.part."""

    name: str
    sha256: str


class SentWindow(TypedDict):
    """A window of text, and a reference's file for it; a relative path counts from the install root."""

    tokens: Sequence[int]
    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Request(Generic[A]):
    """An operation of the agent, with its arguments; `A` is the type of its answer."""

    op: ClassVar[str]
    _answer: ClassVar[type[BaseModel]]
    # The longest time without progress, on the slowest board and disk.
    longest_silence_s: ClassVar[float] = 600.0

    def __init_subclass__(cls) -> None:
        # The answer's type stands once, in the brackets behind the base.
        cls._answer = get_args(cls.__dict__["__orig_bases__"][0])[0]

    def message(self, by: str) -> dict[str, Any]:
        """The message to the agent; `by` names the sender to others that wait for it meanwhile."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        told = {name: _plain(value) for name, value in said.items() if value is not OMITTED}
        return {"protocol": PROTOCOL, "op": self.op, "by": by, **told}

    def read(self, payload: dict[str, Any], who: str) -> A:
        """Parse the answer. Raises AgentError that names the target `who` when it can't be one."""
        return answers.parse(cast("type[A]", self._answer), payload, who, f"to '{self.op}'")


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


@dataclass(frozen=True, kw_only=True)
class Settle(Request[answers.Settled]):
    op = "settle"


@dataclass(frozen=True, kw_only=True)
class TakeProbe(Request[answers.Probed]):
    op = "probe"


@dataclass(frozen=True, kw_only=True)
class FindMissing(Request[answers.Missing]):
    """No file is missing where `release` is installed. Files that arrived are hashed in chunks of `chunk_bytes`."""

    op = "missing"
    artifacts: Sequence[WantedFile]
    chunk_bytes: int | Omitted = OMITTED
    release: str | Omitted = OMITTED


@dataclass(frozen=True, kw_only=True)
class TakeHold(Request[answers.Acknowledged]):
    """Keep the right to push for as long as stdin is open; an event tells the same as the answer to FindMissing."""

    op = "hold"
    artifacts: Sequence[WantedFile]
    chunk_bytes: int | Omitted = OMITTED
    release: str | Omitted = OMITTED


@dataclass(frozen=True, kw_only=True)
class ReuseBlocks(Request[answers.Reused]):
    op = "reuse"
    files: Sequence[WantedFile]


@dataclass(frozen=True, kw_only=True)
class Install(Request[answers.Acknowledged]):
    """`signatures` are texts by the names of their files, `blocks` the lists of large files by their SHA-256."""

    op = "install"
    release: str
    manifest: str
    signatures: Mapping[str, str] | Omitted = OMITTED
    blocks: Mapping[str, BlockList] | Omitted = OMITTED


@dataclass(frozen=True, kw_only=True)
class Discard(Request[answers.Acknowledged]):
    op = "discard"
    sha256: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Activate(Request[answers.Acknowledged]):
    op = "activate"
    release: str
    runtime: str


@dataclass(frozen=True, kw_only=True)
class RollBack(Request[answers.RolledBack]):
    op = "rollback"


@dataclass(frozen=True, kw_only=True)
class Deactivate(Request[answers.Acknowledged]):
    op = "deactivate"


@dataclass(frozen=True, kw_only=True)
class ListReleases(Request[answers.Releases]):
    op = "releases"


@dataclass(frozen=True, kw_only=True)
class ReadManifest(Request[answers.KeptManifest]):
    op = "manifest"
    release: str


@dataclass(frozen=True, kw_only=True)
class Pull(Request[answers.Pulled]):
    """`sources` are the URLs of repositories, in the order in which they are asked."""

    op = "pull"
    artifacts: Sequence[WantedFile]
    sources: Sequence[str]
    limit_bytes_per_s: float | Omitted | None = OMITTED


@dataclass(frozen=True, kw_only=True)
class Verify(Request[answers.Verified]):
    """Verify all releases, unless one is named."""

    op = "verify"
    release: str | Omitted = OMITTED
    repair: bool | Omitted = OMITTED


@dataclass(frozen=True, kw_only=True)
class Prune(Request[answers.PrunedReleases]):
    """`keep` is the number of releases that stay beside the active one."""

    op = "prune"
    keep: int
    dry_run: bool | Omitted = OMITTED


@dataclass(frozen=True, kw_only=True)
class FindPythons(Request[answers.Pythons]):
    op = "pythons"


@dataclass(frozen=True, kw_only=True)
class Provision(Request[answers.Provisioned]):
    """Install a runtime from pushed `wheels`, else from the device's index: `locked` requirements, or else `packages`.

    `smallest` is the requirement that the index is tried with. With `query_only` nothing is installed.
    """

    op = "provision"
    lock: str
    packages: Sequence[str] | Omitted = OMITTED
    wheels: Sequence[SentWheel] | Omitted = OMITTED
    locked: Sequence[str] | Omitted = OMITTED
    smallest: str | Omitted = OMITTED
    query_only: bool | Omitted = OMITTED
    longest_silence_s = 3600.0


@dataclass(frozen=True, kw_only=True)
class _InRuntime(Request[A]):
    """An operation in a fresh process of a runtime: the active release in its own, unless others are named.

    `model_folder` is a bundle's folder there that needn't be a release. Loading the model takes as long as reading it
    takes, and then a thousand tokens, or a window of text, pass without a word.
    """

    longest_silence_s = 3 * 3600.0

    release: str | Omitted = OMITTED
    runtime: str | Omitted = OMITTED
    model_folder: str | Omitted = OMITTED
    settings: RuntimeSettings | Omitted = OMITTED


@dataclass(frozen=True, kw_only=True)
class CheckLoad(_InRuntime[answers.Generated]):
    """`tokens` are generated after a `prompt`."""

    op = "check"
    prompt: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class MakeReference(_InRuntime[answers.ReferenceMade]):
    """Write files for the first `tokens` of `text` to `folder`; `prompts` from it are continued by `match_tokens`."""

    op = "reference"
    text: str
    folder: str
    tokens: int
    window_tokens: int
    prompts: int
    prompt_tokens: int
    match_tokens: int


@dataclass(frozen=True, kw_only=True)
class Evaluate(_InRuntime[answers.Evaluated]):
    """`continuations` are the reference's, each a `prompt` and the `tokens` after it."""

    op = "evaluate"
    windows: Sequence[SentWindow]
    continuations: Sequence[Mapping[str, Sequence[int]]]


@dataclass(frozen=True, kw_only=True)
class Bench(_InRuntime[Run]):
    """One run; `cold` has the disk read again, and `quality_text` is None where no perplexity is wanted."""

    op = "bench"
    workload: Workload
    prompt: str
    cold: bool | Omitted = OMITTED
    quality_text: str | Omitted | None = OMITTED


@dataclass(frozen=True, kw_only=True)
class Measure(Request[answers.Measured]):
    """`kernel` is an ONNX model in base64, `input` the shape that it takes."""

    op = "measure"
    runtime: str
    kernel: str
    input: Sequence[int]
    settings: RuntimeSettings | Omitted = OMITTED


@dataclass(frozen=True, kw_only=True)
class Chat(_InRuntime[answers.Acknowledged]):
    """Turns follow on stdin; `sampling` are the runtime's search options, None is greedy."""

    op = "chat"
    sampling: Mapping[str, float | bool] | Omitted | None = OMITTED


@dataclass(frozen=True, kw_only=True)
class ScoreTasks(_InRuntime[answers.Acknowledged]):
    """A test harness's questions follow on stdin."""

    op = "score"
