"""Upkeep: hash installed releases again; remove files that nothing needs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import remove
from .layout import AGENT_FILE, BLOBS, BLOCKS, INCOMING, RELEASES, ROOT, RUNTIMES, sha256_file
from .locks import held
from .protocol import AgentFailure, progress
from .releases import leave, read_pointer, release_artifacts, release_folder, release_folders, remove_releases

# A file that arrived and wasn't taken for so long belongs to no push any more.
STALE_S = 24 * 3600.0


def op_verify(request: dict[str, Any]) -> dict[str, Any]:
    """Hash every file of every release again, or of the one called `release`.

    With `repair` damaged releases are removed, and damaged blobs; when the active release is among these, `current`
    goes back to the newest whole one. The next deploy sends the damaged files afresh, and those alone.
    """
    with held("lock", request):
        only = request.get("release")
        damage = find_damage([release_folder(only)] if only else release_folders())
        damaged = [entry["release"] for entry in damage if entry["damaged"]]
        pointer = read_pointer()
        if damaged and request.get("repair"):
            pointer = leave(pointer, damaged)
            for entry in damage:
                for sha256 in entry["blobs"]:
                    remove_damaged(BLOBS / sha256)
            remove_releases(damaged)
    return {"releases": damage, "active": pointer["release"], "repaired": bool(damaged and request.get("repair"))}


def remove_damaged(blob: Path) -> None:
    """Remove a blob unless it is whole: it may be, when a release's own copy of a small file is damaged."""
    try:
        whole = sha256_file(blob) == blob.name
    except OSError:
        whole = False
    if not whole:
        remove(blob)


def find_damage(folders: list[Path]) -> list[dict[str, Any]]:
    """Each release with its damaged paths and the blobs behind them; a file with two names is read once."""
    releases = [(folder, release_artifacts(folder)) for folder in folders]
    total = sum(artifact["size_bytes"] for _, artifacts in releases for artifact in artifacts or [])
    done = 0
    known: dict[tuple[int, int], str] = {}

    def heard(count: int) -> None:
        nonlocal done
        done += count
        progress("verify", done, total, "bytes")

    def whole(path: Path, artifact: dict[str, Any]) -> bool:
        try:
            stat = path.stat()
            inode = (stat.st_dev, stat.st_ino)
            if inode not in known:
                known[inode] = sha256_file(path, heard)
            elif stat.st_size:
                heard(stat.st_size)
        except OSError:  # missing, or the disk can't read it any more
            return False
        wanted: str = artifact["sha256"]
        return known[inode] == wanted

    found = []
    for folder, artifacts in releases:
        wrong = [artifact for artifact in artifacts or [] if not whole(folder / artifact["path"], artifact)]
        paths = ["manifest.json"] if artifacts is None else sorted(artifact["path"] for artifact in wrong)
        blobs = sorted({artifact["sha256"] for artifact in wrong})
        found.append({"release": folder.name, "damaged": paths, "blobs": blobs})
    return found


def op_prune(request: dict[str, Any]) -> dict[str, Any]:
    """Remove all but the active release and the `keep` others used or installed last, with what only they needed.

    First the pointer forgets them, then their folders go, then blobs and runtimes that nothing names any more: a
    power cut at any point leaves a store in which everything named is there. With `dry_run` nothing is removed.
    """
    with held("push.lock", request), held("lock", request):
        pointer = read_pointer()
        doomed = releases_to_prune(pointer, request["keep"])
        kept = [folder for folder in release_folders() if folder.name not in doomed]
        named = [release_artifacts(folder) for folder in kept]
        if any(artifacts is None for artifacts in named):
            raise AgentFailure("corrupt", "a release's manifest is damaged", "`edgephi verify TARGET --repair` first")
        blobs = {artifact["sha256"] for artifacts in named for artifact in artifacts or []}
        runtimes = {e["runtime"] for e in [pointer, *pointer["previous"]] if e["release"] not in doomed}
        rest = list(leftovers(blobs, runtimes))
        freed = sum(tree_bytes(path) for path in rest)
        if not request.get("dry_run"):
            if doomed:
                leave(pointer, doomed)
                remove_releases(doomed)
            for path in rest:
                remove(path)
    return {"removed": doomed, "kept": [folder.name for folder in kept], "freed_bytes": freed}


def releases_to_prune(pointer: dict[str, Any], keep: int) -> list[str]:
    """The releases to remove: all but the active one and `keep` others, those active before first, then the newest."""
    installed = sorted(release_folders(), key=lambda folder: -folder.stat().st_mtime)
    order = [entry["release"] for entry in pointer["previous"]] + [folder.name for folder in installed]
    there = {folder.name for folder in installed} - {pointer["release"]}
    others = [release for release in dict.fromkeys(order) if release in there]
    return others[keep:]


def leftovers(blobs: set[str], runtimes: set[str]) -> Iterator[Path]:
    """The paths that nothing names: other blobs and runtimes, files of no release, leftovers of killed agents."""
    named = blobs | runtimes | {f"{sha256}.json" for sha256 in blobs}
    places = [(BLOBS, "*"), (BLOCKS, "*"), (RUNTIMES, "*"), (INCOMING, "*"), (AGENT_FILE.parent, "*.tmp")]
    # While we hold the lock nobody is writing these two.
    places += [(RELEASES, ".*"), (ROOT, "*.tmp")]
    for folder, pattern in places:
        for path in sorted(folder.glob(pattern)) if folder.is_dir() else []:
            # A runtime is made before its release is activated; the files of an evaluation are read after their push.
            in_use = folder in (RUNTIMES, INCOMING, AGENT_FILE.parent) and time.time() - path.stat().st_mtime < STALE_S
            if not in_use and path.name not in named:
                yield path


def tree_bytes(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file() and not inner.is_symlink())
