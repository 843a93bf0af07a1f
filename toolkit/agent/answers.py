"""An agent's answers, parsed once: typed, bounded, and refused in words when they can't be right.

A device may be broken, may be somebody else's, and may lie: nothing that it says is used before it is parsed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

from toolkit.bundle import Manifest
from toolkit.bundle.manifest import Sha256
from toolkit.catalog import ProbeFacts
from toolkit.catalog.facts import Bytes, Count, Number, Text, UnixTime
from toolkit.errors import AgentError
from toolkit.untrusted import LARGEST_MANIFEST_BYTES, LARGEST_SIGNATURE_BYTES, MOST_SIGNATURES

_HINT = "is it edgephi's agent that answers there? `edgephi doctor` looks at it step by step"

Lock = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Nanoseconds = Annotated[int, Field(strict=True, ge=0, lt=2**60)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


class Said(BaseModel):
    """A part of an agent's message, kept as it was said; fields that a newer agent adds are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Answer(Said):
    """The result of an operation; its request names it."""


class Acknowledged(Answer):
    """A result whose content isn't read."""


class Settled(Answer):
    """The result of settling a sent agent: `was_whole` is True when it stood there whole already."""

    was_whole: StrictBool


class Lacking(Said):
    """A file that isn't on the device, and the SHA-256 of every chunk that arrived of it, right or wrong."""

    sha256: Sha256
    chunks: Annotated[tuple[Sha256, ...], Field(max_length=2**20)]


class Missing(Answer):
    installed: StrictBool
    missing: tuple[Lacking, ...]
    free_bytes: Bytes

    def of(self, asked: Collection[str], who: str) -> tuple[Lacking, ...]:
        """The missing files, each one of those that were asked for. Raises AgentError for any other."""
        names = Counter(entry.sha256 for entry in self.missing)
        strange = [name for name, count in names.items() if name not in asked or count > 1]
        if strange:
            raise AgentError(f"{who}: the agent lacks a file that it wasn't asked for: {strange[0][:12]}", _HINT)
        return self.missing


class KeptManifest(Answer):
    """A release's manifest as it stands there, and the signatures beside it, by the names of their files."""

    manifest: Annotated[str, Field(strict=True, max_length=LARGEST_MANIFEST_BYTES)]
    signatures: Annotated[
        dict[Text, Annotated[str, Field(strict=True, max_length=LARGEST_SIGNATURE_BYTES)]],
        Field(max_length=MOST_SIGNATURES),
    ]


class Pulled(Answer):
    files: Count
    pulled_bytes: Bytes
    reused_bytes: Bytes


class InstalledFile(Said):
    model_config = ConfigDict(extra="allow")
    size_bytes: Bytes


class InstalledManifest(Said):
    """The fields that every version of a manifest has, and the rest as it came; `Installed.parsed` reads all of it."""

    model_config = ConfigDict(extra="allow")
    name: Text
    artifacts: tuple[InstalledFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(artifact.size_bytes for artifact in self.artifacts)


class Installed(Said):
    """A release in the device's store."""

    release: Sha256
    manifest: InstalledManifest
    installed_unix_s: UnixTime
    active: StrictBool

    def parsed(self, who: str) -> Manifest:
        """The release's whole manifest. Raises AgentError when it isn't one that this edgephi reads."""
        return parse(Manifest, self.manifest.model_dump(mode="json"), who, f"about release {self.release[:12]}")


class Active(Said):
    """A release and the runtime that executes it; both are None where nothing is active."""

    release: Sha256 | None
    runtime: Lock | None


class Reused(Answer):
    """The bytes of lacking files that were copied from other files on the device."""

    reused_bytes: Bytes


class Pointer(Active):
    """The pair of release and runtime that is active now, and those that were active before, the latest first."""

    pointer_version: int = 1
    previous: tuple[Active, ...]
    activated_unix_s: UnixTime | None = None


class Releases(Answer):
    releases: tuple[Installed, ...]
    pointer: Pointer


class RolledBack(Answer):
    release: Sha256


class Provisioned(Answer):
    """`installed` is True for a runtime that was made now, False for one that was there, None for one that a query
    didn't find."""

    installed: StrictBool | None
    packages: tuple[Text, ...] = ()


class FoundPython(Said):
    """A CPython of the device that a runtime could be made with."""

    path: Text
    version: Annotated[str, Field(pattern=r"^\d{1,4}\.\d{1,4}\.\d{1,4}$")]
    has_ensurepip: StrictBool


class Pythons(Answer):
    pythons: tuple[FoundPython, ...]


class CheckedRelease(Said):
    release: Sha256
    damaged: tuple[Text, ...]


class Verified(Answer):
    releases: tuple[CheckedRelease, ...]
    active: Sha256 | None
    repaired: StrictBool


class PrunedReleases(Answer):
    removed: tuple[Sha256, ...]
    kept: tuple[Sha256, ...]
    freed_bytes: Bytes


class Measured(Answer):
    read_bytes_per_s: Annotated[float, Field(strict=True, gt=0, lt=1e15)]
    kernels_per_s: Annotated[float, Field(strict=True, gt=0, lt=1e12)] | None
    # The share of all processors' time that other programs took meanwhile; None where the device can't tell.
    others_share: Share | None = None


class Generated(Answer):
    """The result of a load check: a bundle has loaded and generated."""

    load_ns: Nanoseconds
    generated_tokens: Count


class Continuation(Said):
    prompt: tuple[Count, ...]
    tokens: tuple[Count, ...]


class ReferenceMade(Answer):
    """The tokens of the windows whose log-probabilities were written, and greedy continuations of prompts."""

    text_tokens: Count
    windows: tuple[tuple[Count, ...], ...]
    continuations: tuple[Continuation, ...]


class ComparedWindow(Said):
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
    windows: Annotated[tuple[ComparedWindow, ...], Field(min_length=1)]
    matches: tuple[Share, ...]
    stepwise: StrictBool


class Probed(ProbeFacts, Answer):
    """The facts of a probe; fields that a newer agent adds are kept, unlike in other answers."""

    model_config = ConfigDict(extra="allow")


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], payload: object, who: str, what: str) -> M:
    """Parse a payload. Raises AgentError that names the fault; `who` is the target's name, `what` follows "answer"."""
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
