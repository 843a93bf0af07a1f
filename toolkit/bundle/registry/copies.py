"""Copies on this machine of what a registry has: each is held against its hash, or its bytes, before it counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from toolkit.bundle.manifest import Manifest
from toolkit.bundle.store import Bundle, find_problem, find_problems
from toolkit.config import shown
from toolkit.events import Service, Warning_
from toolkit.untrusted import MANIFEST_NAME

_MOST_NAMED = 3


def drop_others(folder: Path, wanted: Mapping[str, bytes]) -> Service[None]:
    """Remove every file of a folder of the cache that isn't to the byte one of `wanted`; one warning names them."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    others = [name for name, path in found.items() if not is_copy(path, wanted.get(name))]
    for name in others:
        found[name].unlink()
    if others:
        yield Warning_(f"{shown(folder)}: {_named(others)}: not what the registry has, fetched again")


def is_copy(path: Path, content: bytes | None) -> bool:
    """Tell if a file is there and has that content; None is the content of no file."""
    return content is not None and _may_be(path, len(content)) and path.read_bytes() == content


def find_damage(folder: Path, manifest: Manifest, raw: bytes) -> Service[list[str]]:
    """The files of a stored bundle that aren't what its id says, after a warning that names them.

    `raw` is the file of its manifest.
    """
    wrong = [*(yield from find_problems(Bundle(folder, manifest, folder.name)))]
    if not is_copy(folder / MANIFEST_NAME, raw):
        wrong.append(MANIFEST_NAME)
    if wrong:
        yield Warning_(f"{shown(folder)}: {_named(wrong)}: changed or missing, pulled again")
    return wrong


def find_whole(folder: Path, manifest: Manifest) -> Service[set[str]]:
    """The paths of those artifacts that lie in a folder with the right content. Each file that is there is hashed."""
    there = [artifact for artifact in manifest.artifacts if (folder / artifact.path).is_file()]
    total, done, whole = sum(artifact.size_bytes for artifact in there), 0, set()
    for artifact in there:
        if not (yield from find_problem(folder, artifact, done, total)):
            whole.add(artifact.path)
        done += artifact.size_bytes
    return whole


def _may_be(path: Path, size_bytes: int) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == size_bytes


def _named(names: list[str]) -> str:
    left = len(names) - _MOST_NAMED
    return ", ".join([*names[:_MOST_NAMED], *([f"{left} more"] if left > 0 else [])])
