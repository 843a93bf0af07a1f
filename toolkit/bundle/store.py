"""Bundles: built folders that never change, known by the SHA-256 of their manifest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle.manifest import REBUILD, Artifact, Manifest, manifest_text, parse_manifest
from toolkit.catalog.hash_memo import chunks
from toolkit.config import cache_dir, is_path, shown, suggestion
from toolkit.errors import ConfigError, CorruptBundle
from toolkit.events import Progress, Service
from toolkit.files import copy_file, fresh_folder, hold_folder, put_file, put_folder
from toolkit.metrics import Quality
from toolkit.untrusted import (
    LARGEST_MANIFEST_BYTES,
    MANIFEST_NAME,
    SIGNATURES,
)

MIN_PREFIX = 6
READ_ONLY = 0o444
_HOLD_TRIES, _HOLD_POLL_S = 5, 0.01


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
    wrong = yield from find_problems(bundle)
    if wrong:
        problems = "\n  ".join(f"{name}: {problem}" for name, problem in wrong.items())
        raise CorruptBundle(f"{shown(bundle.path)}: corrupt bundle\n  {problems}", REBUILD)


NOT_LISTED = "not in the manifest"


def find_problems(bundle: Bundle) -> Service[dict[str, str]]:
    """Hold every file against the manifest: its size, then its whole content.

    Returns what is wrong with each wrong file, by its path in the bundle: NOT_LISTED for one that was added.
    """
    wrong = dict.fromkeys(_extra_files(bundle), NOT_LISTED)
    done = 0
    for artifact in bundle.manifest.artifacts:
        problem = yield from find_problem(bundle.path, artifact, done, bundle.manifest.size_bytes)
        done += artifact.size_bytes
        if problem:
            wrong[artifact.path] = problem
    return wrong


def find_problem(folder: Path, artifact: Artifact, done: int = 0, total: int | None = None) -> Service[str | None]:
    """Hold one file in `folder` against its entry: its size, then its whole content; None when it is whole.

    The progress counts from `done` bytes of `total`, by default the file's own.
    """
    problem = _shallow_problem(folder, artifact)
    if problem is not None:
        return problem
    digest = hashlib.sha256()
    try:
        for chunk in chunks(folder / artifact.path):
            digest.update(chunk)
            done += len(chunk)
            yield Progress("verify", done, total or artifact.size_bytes, "bytes")
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    return None if digest.hexdigest() == artifact.sha256 else "content changed (another SHA-256)"


def _shallow_problem(folder: Path, artifact: Artifact) -> str | None:
    path = folder / artifact.path
    if any(part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(folder) and part != folder):
        return "a symbolic link, not a file"
    if path.is_dir():
        return "a folder, not a file"
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != artifact.size_bytes:
        return f"{size} bytes instead of {artifact.size_bytes}"
    return None


def _extra_files(bundle: Bundle) -> Iterator[str]:
    known = {MANIFEST_NAME, *(artifact.path for artifact in bundle.manifest.artifacts)}
    known |= {f"{SIGNATURES}/{file.name}" for file in signature_files(bundle.path) if not file.is_symlink()}
    for path in sorted(bundle.path.rglob("*")):
        name = path.relative_to(bundle.path).as_posix()
        if name not in known and (path.is_symlink() or not path.is_dir()):
            yield name


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
    """A bundle by the path of its folder, by the first characters of its id (6 or more), or by its name in the store.

    Raises ConfigError when `ref` means no bundle, or more than one: a stored one and a folder of that name, too.
    """
    if is_path(ref):
        return open_bundle(Path(ref).expanduser())
    stored = list_bundles()
    matches = matching(ref, stored)
    if not matches:
        known = suggestion(ref, {bundle.manifest.name for bundle in stored})
        folder = f"; the folder of that name is ./{ref}" if Path(ref).is_dir() else ""
        raise ConfigError(f"unknown bundle '{ref}'{known}", f"edgephi bundle list shows what is built{folder}")
    if len(matches) > 1:
        ids = ", ".join(f"{bundle.id[:12]} (context {bundle.manifest.context_tokens})" for bundle in matches)
        raise ConfigError(f"'{ref}' means {len(matches)} bundles: {ids}", "name one by its id")
    if (Path(ref) / MANIFEST_NAME).is_file():
        hint = f"write ./{ref} for the folder, {matches[0].id[:12]} for the stored bundle"
        raise ConfigError(f"'{ref}' is a stored bundle, and a folder here is a bundle too", hint)
    return in_use(matches[0])


def in_use(bundle: Bundle) -> Bundle:
    """The stored bundle, which isn't pruned for as long as the value lives."""
    keep_with(bundle, bundle.path)
    return bundle


def keep_with(value: object, folder: Path) -> None:
    """Mark a folder of the cache as used now, and hold it from being pruned for as long as `value` lives."""
    for _ in range(_HOLD_TRIES):
        # Somebody who lists the cache holds each folder alone for a moment.
        if (release := hold_folder(folder)) is not None:
            weakref.finalize(value, release)
            break
        time.sleep(_HOLD_POLL_S)
    with contextlib.suppress(OSError):
        os.utime(folder)


def matching(ref: str, stored: Sequence[Bundle]) -> list[Bundle]:
    """The stored bundles of a name, or else of an id that begins with `ref`; of one identity that with most figures."""
    by_figures = sorted(stored, key=lambda bundle: len(bundle.manifest.quality))
    named = list({b.manifest.identity: b for b in by_figures if b.manifest.name == ref}.values())
    if named or not re.fullmatch(rf"[0-9a-f]{{{MIN_PREFIX},64}}", ref):
        return named
    return [bundle for bundle in stored if bundle.id.startswith(ref)]


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
        # The old names go with the old bundle, a moment later.
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
    """Put files of `source`, which is removed afterwards, into `folder`: by a second name where the disk allows it."""
    _put_files(source, names, folder, _link)


def copy_files(source: Path, names: Iterable[str], folder: Path) -> None:
    """Put copies of files of `source` into `folder`.

    A stored bundle shares no file with another folder: a change of one would be a change of both, and `onnx.load`
    refuses files that have several names.
    """
    _put_files(source, names, folder, copy_file)


def _put_files(source: Path, names: Iterable[str], folder: Path, put: Callable[[Path, Path], None]) -> None:
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        put(source / name, target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # A file system without hard links.
        copy_file(source, target)
