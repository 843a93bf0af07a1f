"""Bundles: built folders that never change, known by the SHA-256 of their manifest."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle.manifest import REBUILD, Artifact, Manifest, manifest_text, parse_manifest
from toolkit.config import cache_dir, shown, suggestion
from toolkit.errors import ConfigError, CorruptBundle
from toolkit.events import Progress, Service
from toolkit.files import fresh_folder, put_file, put_folder
from toolkit.metrics import Quality
from toolkit.untrusted import (
    LARGEST_MANIFEST_BYTES,
    MANIFEST_NAME,
    SIGNATURES,
)

MIN_PREFIX = 6
READ_ONLY = 0o444
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle on this machine: its folder, its manifest, and the hash that names it."""

    path: Path
    manifest: Manifest
    id: str

    @property
    def manifest_bytes(self) -> bytes:
        """The manifest file as it stands: its SHA-256 is `id`."""
        return (self.path / MANIFEST_NAME).read_bytes()

    @property
    def manifest_text(self) -> str:
        return self.manifest_bytes.decode("utf-8")

    @property
    def is_here(self) -> bool:
        """True when the artifacts lie beside the manifest; devices can pull a bundle whose manifest alone is here."""
        return all((self.path / artifact.path).is_file() for artifact in self.manifest.artifacts)


def write_bundle(folder: Path, manifest: Manifest) -> Bundle:
    """Put the manifest beside its artifacts in `folder` and make every file read-only.

    The artifacts must already stand there. Returns the bundle; its id follows from the manifest alone.
    """
    text = manifest_text(manifest)
    parse_manifest(text.encode(), shown(folder))  # what nobody could read again isn't written
    path = folder / MANIFEST_NAME
    path.write_text(text, encoding="utf-8", newline="\n")
    for file in (path, *(folder / artifact.path for artifact in manifest.artifacts)):
        file.chmod(READ_ONLY)
    return Bundle(folder, manifest, hashlib.sha256(text.encode()).hexdigest())


def open_bundle(path: Path) -> Bundle:
    """Read a bundle's manifest; only `verify_bundle` looks at the artifacts.

    Raises ConfigError when there is no bundle, CorruptBundle when its manifest can't be trusted.
    """
    file = path / MANIFEST_NAME
    if not path.is_dir():
        raise ConfigError(f"{shown(path)}: not a folder", "edgephi bundle list shows what is built")
    if not file.is_file():
        raise ConfigError(f"{shown(path)}: not a bundle: no {MANIFEST_NAME}", "edgephi bundle list shows what is built")
    if file.is_symlink():
        raise CorruptBundle(f"{shown(file)}: a symbolic link, not a file", REBUILD)
    try:
        with file.open("rb") as stream:
            raw = stream.read(LARGEST_MANIFEST_BYTES + 1)
    except OSError as exc:
        raise CorruptBundle(f"{shown(file)}: cannot be read: {exc.strerror}") from exc
    return Bundle(path, parse_manifest(raw, shown(file)), hashlib.sha256(raw).hexdigest())


def verify_bundle(bundle: Bundle) -> Service[None]:
    """Hold every file against the manifest.

    Raises CorruptBundle that lists every wrong file: missing, changed, added or linked.
    """
    wrong = list(_extra_files(bundle))
    total, done = bundle.manifest.size_bytes, 0
    for artifact in bundle.manifest.artifacts:
        problem = _shallow_problem(bundle.path, artifact)
        if problem is None:
            digest = hashlib.sha256()
            with (bundle.path / artifact.path).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    done += len(chunk)
                    yield Progress("verify", done, total, "bytes")
            if digest.hexdigest() != artifact.sha256:
                problem = f"{artifact.path}: content changed (another SHA-256)"
        if problem:
            wrong.append(problem)
    if wrong:
        raise CorruptBundle(f"{shown(bundle.path)}: corrupt bundle\n  " + "\n  ".join(wrong), REBUILD)


def _shallow_problem(folder: Path, artifact: Artifact) -> str | None:
    path = folder / artifact.path
    if any(part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(folder) and part != folder):
        return f"{artifact.path}: a symbolic link, not a file"
    if not path.is_file():
        return f"{artifact.path}: missing"
    size = path.stat().st_size
    if size != artifact.size_bytes:
        return f"{artifact.path}: {size} bytes instead of {artifact.size_bytes}"
    return None


def _extra_files(bundle: Bundle) -> Iterator[str]:
    known = {MANIFEST_NAME, *(artifact.path for artifact in bundle.manifest.artifacts)}
    known |= {f"{SIGNATURES}/{file.name}" for file in signature_files(bundle.path) if not file.is_symlink()}
    for path in sorted(bundle.path.rglob("*")):
        name = path.relative_to(bundle.path).as_posix()
        if name not in known and (path.is_symlink() or not path.is_dir()):
            yield f"{name}: not in the manifest"


def signature_files(folder: Path) -> list[Path]:
    """The files of signatures beside a bundle's manifest, unchecked."""
    return sorted((folder / SIGNATURES).glob("*.sig"))


def store_dir() -> Path:
    """The store: the folder of the built bundles, each in a folder named by its id."""
    return cache_dir() / "bundles"


def list_bundles() -> list[Bundle]:
    """The bundles in the store, by name. One with a broken manifest is left out; `bundle verify FOLDER` judges it."""
    found = []
    for folder in store_dir().glob("*"):
        try:
            bundle = open_bundle(folder)
        except (ConfigError, CorruptBundle):
            continue
        if bundle.id == folder.name:
            found.append(bundle)
    return sorted(found, key=lambda bundle: (bundle.manifest.name, bundle.id))


def find_bundle(ref: str) -> Bundle:
    """A bundle by folder, by the first characters of its id (6 or more), or by its name in the store.

    Raises ConfigError when `ref` means no bundle, or more than one.
    """
    if os.sep in ref or "/" in ref or Path(ref).is_dir():
        return open_bundle(Path(ref).expanduser())
    stored = list_bundles()
    by_figures = sorted(stored, key=lambda bundle: len(bundle.manifest.quality))
    matches = list({b.manifest.identity: b for b in by_figures if b.manifest.name == ref}.values())
    if not matches and re.fullmatch(rf"[0-9a-f]{{{MIN_PREFIX},64}}", ref):
        matches = [bundle for bundle in stored if bundle.id.startswith(ref)]
    if not matches:
        known = suggestion(ref, {bundle.manifest.name for bundle in stored})
        raise ConfigError(f"unknown bundle '{ref}'{known}", "edgephi bundle list shows what is built")
    if len(matches) > 1:
        ids = ", ".join(f"{bundle.id[:12]} (context {bundle.manifest.context_tokens})" for bundle in matches)
        raise ConfigError(f"'{ref}' means {len(matches)} bundles: {ids}", "name one by its id")
    return matches[0]


def find_identity(identity: str) -> Bundle | None:
    """The stored bundle of that identity; the one with the most figures should there be several."""
    found = _of_identity(identity)
    return max(found, key=lambda bundle: len(bundle.manifest.quality), default=None)


def _of_identity(identity: str) -> list[Bundle]:
    return [bundle for bundle in list_bundles() if bundle.manifest.identity == identity]


def record_quality(bundle: Bundle, text: str, quality: Quality) -> Bundle:
    """Put the figures on `text` into a bundle's manifest: in the store, and in its own folder if that is elsewhere.

    The same files under a new id take the old bundle's place. Raises ConfigError when its folder can't be written.
    """
    stored = _of_identity(bundle.manifest.identity)
    known = {key: value for other in (*stored, bundle) for key, value in other.manifest.quality.items()}
    manifest = bundle.manifest.model_copy(update={"quality": known | {text: quality}})
    try:
        replaced = _replace_stored(stored, manifest) if stored else None
        if replaced and any(other.path.absolute() == bundle.path.absolute() for other in stored):
            return replaced
        return _replace_manifest(bundle.path, manifest)
    except OSError as exc:
        message = f"{shown(bundle.path)}: the figures can't be recorded: {exc.strerror}"
        raise ConfigError(message, "--no-record leaves the bundle as it is") from exc


def _replace_stored(stored: list[Bundle], manifest: Manifest) -> Bundle:
    with fresh_folder(store_dir() / manifest.identity) as fresh:
        link_files(stored[0].path, [artifact.path for artifact in manifest.artifacts], fresh)
        made = write_bundle(fresh, manifest)
        final = store_dir() / made.id
        if not final.is_dir():
            put_folder(fresh, final)
    # After a kill before this, two bundles of one identity stay: a look-up takes the one with more figures.
    for old in stored:
        if old.id != made.id:
            shutil.rmtree(old.path)
    return Bundle(final, manifest, made.id)


def _replace_manifest(folder: Path, manifest: Manifest) -> Bundle:
    text = manifest_text(manifest)
    changed = text.encode() != (folder / MANIFEST_NAME).read_bytes()
    put_file(folder / MANIFEST_NAME, text, mode=READ_ONLY)
    if changed:
        # The signatures were made for the manifest without the figures.
        shutil.rmtree(folder / SIGNATURES, ignore_errors=True)
    return open_bundle(folder)


def link_files(source: Path, names: Iterable[str], folder: Path) -> None:
    """Put files of `source` into `folder` without a second copy of their bytes where the disk allows it."""
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target)
        except OSError:
            # Another file system, or one without hard links.
            shutil.copyfile(source / name, target)
