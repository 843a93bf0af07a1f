"""The manifest: a bundle's files, and the model, recipe and tools of its build. Its SHA-256 is the bundle's id."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from toolkit.catalog.record import Record
from toolkit.errors import CorruptBundle
from toolkit.metrics import Footprint, Quality
from toolkit.untrusted import (
    LARGEST_MANIFEST_BYTES,
    MOST_ARTIFACTS,
    MOST_BYTES,
    artifact_problem,
    path_clash,
    read_json,
)

REBUILD = "edgephi optimize builds it again; or copy it again from where it is whole"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _safe_path(text: str) -> str:
    """A relative POSIX path that stays inside the bundle on every system, and isn't the manifest's or a signature's."""
    problem = artifact_problem(text)
    if problem:
        raise ValueError(f"unsafe path {text[:200]!r}: {problem}")
    return text


class Artifact(Record):
    """One file: its path inside the bundle (POSIX, relative), size and hash."""

    path: Annotated[str, AfterValidator(_safe_path)]
    size_bytes: int = Field(strict=True, ge=0, lt=MOST_BYTES)
    sha256: Sha256


class ModelRecord(Record):
    """The model that was quantized. `weights_sha256` covers configuration, tokenizer and weights."""

    id: str
    revision: str | None
    architecture: str
    weights_sha256: Sha256
    parameters: int = Field(strict=True, ge=0, lt=1 << 63)


class Manifest(Record):
    """A bundle's files, and the model, recipe and tools of its build. Nothing in it tells the build's time or place.

    `quality` has the figures of evaluations on the host, each by the name of its text.
    """

    manifest_version: Literal[1] = 1
    name: str
    artifacts: tuple[Artifact, ...] = Field(max_length=MOST_ARTIFACTS)
    model: ModelRecord
    recipe: dict[str, Any]
    provider: str
    context_tokens: int = Field(strict=True, ge=1, lt=1 << 31)
    tools: dict[str, str]
    workflow_sha256: Sha256
    quality: dict[str, Quality] = Field(default_factory=dict)
    # The bundle's needs on a device, predicted at its build; bundles of edgephi 0.1 have none.
    plan: Footprint | None = None

    @model_validator(mode="after")
    def _paths_that_fit_together(self) -> Manifest:
        clash = path_clash(artifact.path for artifact in self.artifacts)
        if clash:
            raise ValueError(clash)
        return self

    @property
    def size_bytes(self) -> int:
        return sum(artifact.size_bytes for artifact in self.artifacts)

    @property
    def identity(self) -> str:
        """The hash of the manifest without its quality, which stays the same when figures are recorded."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json", exclude={"quality"})).encode()).hexdigest()


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no blanks, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def describe_file(path: Path, name: str) -> Artifact:
    """The manifest entry of a file that is to stand in a bundle as `name`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(path=name, size_bytes=path.stat().st_size, sha256=digest)


def manifest_text(manifest: Manifest) -> str:
    return canonical_json(manifest.model_dump(mode="json")) + "\n"


def parse_manifest(raw: bytes, where: str) -> Manifest:
    if len(raw) > LARGEST_MANIFEST_BYTES:
        raise CorruptBundle(f"{where}: too large for a manifest", REBUILD)
    try:
        value = read_json(raw)
    except ValueError as exc:
        raise CorruptBundle(f"{where}: not JSON of a manifest: {exc}", REBUILD) from exc
    version = value.get("manifest_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > 1:
        raise CorruptBundle(f"{where}: version {version} is newer than this edgephi reads", "update edgephi")
    try:
        return Manifest.model_validate(value)
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise CorruptBundle(f"{where}: {key + ': ' if key else ''}{message}", REBUILD) from exc
