"""The cache of this machine: what lies in it, how much of the disk it takes, when it was used last; and its removal.

Nothing is removed that a living process holds: a build by its lock, a bundle and other folders by a hold on the folder.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from toolkit.bundle import open_bundle
from toolkit.bundle.store import store_dir
from toolkit.config import cache_dir
from toolkit.errors import ConfigError, ToolkitError
from toolkit.events import Service, Step, Warning_
from toolkit.files import abandoned, fresh_folder, hold_folder, in_words, is_free, locked, sweep
from toolkit.optimize.build import builds_dir, drop_second_names
from toolkit.untrusted import read_json_file

HALF_MADE, BUNDLE, BUILD, MODEL = "half-made", "bundle", "build", "model"
WHEELS, REGISTRY, REFERENCE, BLOCKS = "wheels", "registry", "reference", "blocks"
# Others than edgephi use the hub's cache, so its models go only when they are asked for by kind.
KINDS = (HALF_MADE, BUNDLE, BUILD, WHEELS, REGISTRY, REFERENCE, BLOCKS, MODEL)
_KEY = re.compile("[0-9a-f]{64}")
# Earlier versions of edgephi built in `.<key>`, without a lock: one that is quiet for so long has no builder.
_QUIET_S = 86_400
_ROOM = re.compile(r"\.(.+)-[0-9a-f]{8}\.part")
# The ends of the names of a pull's folder and of the file that is arriving, beside its lock.
_PULL = re.compile(r"\.pull$|\.[0-9a-f]{16}\.part$")


@dataclass(frozen=True)
class Entry:
    """One thing in the cache: `disk_bytes` counts each file once, also where it has several names."""

    kind: str
    name: str
    path: Path
    disk_bytes: int
    used_unix_s: float
    held: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True)
class Pruned:
    """The entries that went, or would go, the bytes of the disk that this frees, and those that processes held."""

    removed: list[Entry]
    freed_bytes: int
    held: list[Entry]


def list_cache() -> list[Entry]:
    """Everything in the cache, and the Phi models in the hub's cache, by kind; of one kind the last used first."""
    seen: set[tuple[int, int]] = set()
    found = [
        replace(entry, disk_bytes=_disk_bytes(entry.path, seen))
        for entry in (*_bundles(), *_builds(), *_half_made(), *_simple(), *_models())
    ]
    return sorted(found, key=lambda entry: (KINDS.index(entry.kind), -entry.used_unix_s))


def choose(
    entries: Iterable[Entry], *, keep: int | None, older_than_s: float | None, kinds: tuple[str, ...] = ()
) -> list[Entry]:
    """The entries to prune: what is half made; the bundles beside the `keep` last used; what wasn't used for so long.

    With both limits a bundle goes when both say so. `kinds` names the only kinds that go; models go when named alone.
    """
    now, bundles = time.time(), 0
    chosen = []
    for entry in entries:
        bundles += entry.kind == BUNDLE
        if entry.kind not in (kinds or tuple(kind for kind in KINDS if kind != MODEL)):
            continue
        old = older_than_s is None or now - entry.used_unix_s >= older_than_s
        beyond = keep is None or bundles > keep
        limited = (older_than_s is not None or keep is not None) if entry.kind == BUNDLE else older_than_s is not None
        if entry.kind == HALF_MADE or (limited and old and (beyond or entry.kind != BUNDLE)):
            chosen.append(entry)
    return chosen


def prune_cache(entries: list[Entry], *, dry_run: bool = False) -> Service[Pruned]:
    """Remove entries of `list_cache` that no process holds. Raises ConfigError for what can't be removed."""
    held = [entry for entry in entries if entry.held]
    going = [entry for entry in entries if not entry.held]
    if dry_run:
        return Pruned(going, _freed_bytes(entry.path for entry in going), held)
    freed, removed = 0, []
    for entry in going:
        bytes_of_it = _freed_bytes([entry.path])
        if _remove(entry):
            yield Step(f"remove {entry.kind} {entry.name}")
            removed.append(entry)
            freed += bytes_of_it
        else:
            held.append(entry)
    for entry in held:
        yield Warning_(f"{entry.kind} {entry.name} stays: a process uses it")
    for folder in builds_dir().glob("*"):
        if _KEY.fullmatch(folder.name):
            _tidy_build(folder)
    return Pruned(removed, freed, held)


def _remove(entry: Entry) -> bool:
    """Remove an entry; False when a process has taken it since it was listed."""
    if room := _ROOM.fullmatch(entry.path.name):
        sweep(entry.path.parent, re.escape(room[1]))
        return not entry.path.exists()
    if lock := _lock_of(entry):
        try:
            with locked(lock, "uses it", passing=True):
                _delete(entry.path)
        except ConfigError:
            if is_free(lock):
                raise
            return False
        return True
    holds = [hold_folder(folder, alone=True) for folder in _held_folders(entry)]
    try:
        if None in holds:
            return False
        _delete(entry.path)
    finally:
        for release in filter(None, holds):
            release()
    return True


def _lock_of(entry: Entry) -> Path | None:
    """The lock of a build's folder, or of a pull's folder or file; None for what is held in another way."""
    if entry.kind == BUILD:
        return entry.path.with_name(f"{entry.path.name}.lock")
    if entry.kind == HALF_MADE and entry.path.parent == store_dir():
        return entry.path.with_name(_PULL.sub(".lock", entry.path.name))
    return None


def _delete(path: Path) -> None:
    with in_words(path):
        if not path.is_dir():
            path.unlink(missing_ok=True)
        elif path.is_relative_to(cache_dir()):
            # A kill in the middle leaves a half-made thing, which nothing trusts.
            with fresh_folder(path) as room:
                path.rename(room / "removed")
        else:
            shutil.rmtree(path)


def _tidy_build(folder: Path) -> None:
    """Take from a build of an earlier edgephi the second names of a bundle's files, so that the bundle's are the only
    ones. One that is being made is left alone."""
    with suppress(ToolkitError, OSError), locked(folder.with_name(f"{folder.name}.lock"), "builds it", passing=True):
        drop_second_names(folder)


def _bundles() -> Iterator[Entry]:
    for folder in _folders(store_dir()):
        if _KEY.fullmatch(folder.name):
            try:
                manifest = open_bundle(folder).manifest
                name = f"{manifest.name} ({folder.name[:12]})"
            except ToolkitError:
                name = f"{folder.name[:12]}, damaged"
            yield _entry(BUNDLE, name, folder)


def _builds() -> Iterator[Entry]:
    """Olive's files that no stored bundle has taken over; the records of builds take no room worth a line."""
    for folder in _folders(builds_dir()):
        held = not is_free(folder.with_name(f"{folder.name}.lock"))
        if _KEY.fullmatch(folder.name) and any(folder.glob("*.onnx")):
            yield replace(_entry(BUILD, f"{folder.name[:12]}, not yet a bundle", folder), held=held)


def _half_made() -> Iterator[Entry]:
    root = cache_dir()
    for parent in (root, *_folders(root), *_folders(root / "wheels"), *_folders(root / "emulator")):
        free = set(abandoned(parent))
        for path in _folders(parent):
            if match := _ROOM.fullmatch(path.name):
                yield replace(_entry(HALF_MADE, f"{parent.name}/{match[1][:10]}", path), held=path not in free)
    for path in _folders(builds_dir()):
        if _KEY.fullmatch(path.name[1:]) and path.name[0] == ".":
            entry = replace(_entry(HALF_MADE, f"builds/{path.name[1:11]}", path), used_unix_s=_newest(path))
            yield replace(entry, held=time.time() - entry.used_unix_s < _QUIET_S)
    for path in sorted(store_dir().glob(".*")):
        if _PULL.search(path.name) and not _ROOM.fullmatch(path.name):
            entry = _entry(HALF_MADE, f"pull of {path.name.rpartition('-')[2][:12]}, which a pull goes on with", path)
            lock = _lock_of(entry)
            yield replace(entry, held=lock is not None and not is_free(lock))


def _simple() -> Iterator[Entry]:
    root = cache_dir()
    for folder in _folders(root / "wheels"):
        if folder.name[0] != ".":
            files = sorted(path.name for path in folder.glob("*.whl"))
            name = (
                files[0].partition("-")[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "") if files else ""
            )
            yield _entry(WHEELS, name or folder.name[:12], folder)
    for folder in _folders(root / "registry"):
        with suppress(ToolkitError):
            yield _entry(REGISTRY, f"manifest of {open_bundle(folder).manifest.name}", folder)
    for folder in _folders(root / "reference"):
        yield _entry(REFERENCE, f"log-probabilities {folder.name[:12]}", folder)
    for path in sorted((root / "blocks").glob("*.json")):
        yield Entry(BLOCKS, f"places of tensors {path.stem[:12]}", path, 0, path.stat().st_mtime, held=False)


def _models() -> Iterator[Entry]:
    """The Phi models in the cache of the hub's library, which `edgephi optimize ORG/NAME` fetches."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    for folder in _folders(hub):
        if folder.name.startswith("models--") and any(map(_is_phi, folder.glob("snapshots/*/config.json"))):
            used = max(path.stat().st_mtime for path in (folder, *_folders(folder / "snapshots")))
            entry = replace(
                _entry(MODEL, folder.name.removeprefix("models--").replace("--", "/"), folder), used_unix_s=used
            )
            partial = [path.stat().st_mtime for path in folder.glob("blobs/*.incomplete")]
            yield replace(entry, held=entry.held or time.time() - max(partial, default=0) < _QUIET_S)


def _is_phi(config: Path) -> bool:
    try:
        value = read_json_file(config, controls=True)
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and str(value.get("model_type", "")).startswith("phi")


def _entry(kind: str, name: str, folder: Path) -> Entry:
    entry = Entry(kind, name, folder, 0, _used(folder), held=False)
    return replace(entry, held=any(map(_is_held, _held_folders(entry))))


def _held_folders(entry: Entry) -> list[Path]:
    """The folders that a process holds while it uses an entry: wheels are held all together."""
    if entry.kind == WHEELS:
        return [entry.path.parent]
    if entry.kind == MODEL:
        return _folders(entry.path / "snapshots")
    return [entry.path] if entry.path.is_dir() else []


def _is_held(folder: Path) -> bool:
    release = hold_folder(folder, alone=True)
    if release is None:
        return folder.exists()
    release()
    return False


def _folders(parent: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.is_symlink())
    return []


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _newest(folder: Path) -> float:
    return max((_used(Path(top, name)) for top, _, names in os.walk(folder) for name in [".", *names]), default=0.0)


def _files(path: Path) -> Iterator[os.stat_result]:
    with suppress(OSError):
        yield path.lstat()
    for top, folders, names in os.walk(path):
        for name in (*folders, *names):
            with suppress(OSError):
                yield Path(top, name).lstat()


def _disk_bytes(path: Path, seen: set[tuple[int, int]]) -> int:
    """The bytes of the disk that a file or folder takes, without files in `seen`, to which its own are added."""
    total = 0
    for stat in _files(path):
        if (stat.st_dev, stat.st_ino) not in seen or not stat.st_ino:
            seen.add((stat.st_dev, stat.st_ino))
            total += _taken(stat)
    return total


def _freed_bytes(paths: Iterable[Path]) -> int:
    """The bytes that removing all of the paths frees: a file with a name elsewhere takes its room as before."""
    names: dict[tuple[int, int], int] = {}
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for path in paths:
        for stat in _files(path):
            key = (stat.st_dev, stat.st_ino)
            names[key] = names.get(key, 0) + 1
            links = 1 if S_ISDIR(stat.st_mode) else stat.st_nlink
            sizes[key] = (links, _taken(stat))
    return sum(taken for key, (links, taken) in sizes.items() if names[key] >= links)


def _taken(stat: os.stat_result) -> int:
    blocks: int | None = getattr(stat, "st_blocks", None)
    return stat.st_size if blocks is None else blocks * 512
