"""The way from arriving files to a release: incoming files, blobs, links to them."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from .files import copy, fsync_path, link_or_copy, move, refuse_long_paths, remove, seal
from .layout import BLOBS, INCOMING, RELEASES, ROOT, sha256_file, write_durably
from .locks import held
from .manifests import read_manifest, read_signatures
from .protocol import CHUNK, HEX64, AgentFailure, emit, progress
from .releases import release_artifacts, release_folders
from .reuse import keep_blocks

# Releases share tokenizers and settings. One damaged sector mustn't take all of them; Phi-3's tokenizer is 3.5 MB.
OWN_COPY_BYTES = 4 << 20


def op_hold(request: dict[str, Any]) -> dict[str, Any]:
    """Keep `push.lock` for as long as the host keeps our stdin open: two pushers would write to the same files.

    The event that tells of the lock lists the missing `artifacts` too: another start would take a small board a second.
    """
    with held("push.lock", request):
        emit("event", {"type": "held", "found": op_missing(request)})
        while os.read(0, CHUNK):
            pass
    return {}


def op_missing(request: dict[str, Any]) -> dict[str, Any]:
    """List those of `artifacts` that have no blob here yet, with the hashes of their chunks, and the free space.

    A file that has arrived may have holes: it is hashed in chunks of `chunk_bytes`, and the right ones stay.
    """
    if (RELEASES / request.get("release", "-")).is_dir():
        return {"installed": True, "missing": [], "free_bytes": shutil.disk_usage(ROOT).free}
    missing = []
    for artifact in request["artifacts"]:
        sha256, size = artifact["sha256"], artifact["size_bytes"]
        if not HEX64.match(sha256):
            raise AgentFailure("bad_request", f"not a SHA-256: {sha256!r}")
        blob, part = BLOBS / sha256, INCOMING / f"{sha256}.part"
        if blob.is_file() and blob.stat().st_size == size:
            continue
        entry: dict[str, Any] = {"sha256": sha256, "chunks": []}
        if part.is_file():
            if part.stat().st_size <= size:
                entry["chunks"] = chunk_hashes(part, request["chunk_bytes"])
            else:
                remove(part)
        missing.append(entry)
    INCOMING.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {"installed": False, "missing": missing, "free_bytes": shutil.disk_usage(ROOT).free}


def chunk_hashes(path: Path, chunk_bytes: int) -> list[str]:
    """SHA-256 of every `chunk_bytes` of a file, the last chunk as long as it is."""
    if not CHUNK <= chunk_bytes <= 64 * CHUNK:
        raise AgentFailure("bad_request", f"chunks of {chunk_bytes} bytes")
    hashes = []
    with path.open("rb", buffering=0) as file:
        while True:
            digest, left = hashlib.sha256(), chunk_bytes
            while left:
                data = file.read(min(left, CHUNK))
                if not data:
                    break
                digest.update(data)
                left -= len(data)
            if left < chunk_bytes:
                hashes.append(digest.hexdigest())
            if left:
                return hashes


def op_install(request: dict[str, Any]) -> dict[str, Any]:
    """Make a release of the files that arrived: all artifacts hashed, linked and flushed, the folder renamed last.

    Signatures are kept beside the manifest, also of a release that is installed.
    """
    release, text = request["release"], request["manifest"]
    artifacts, signatures = read_manifest(text, release), read_signatures(request.get("signatures", {}))
    refuse_long_paths(str(RELEASES / release / artifact["path"]) for artifact in artifacts)
    with held("lock", request):
        if (RELEASES / release).is_dir():
            keep_signatures(signatures, RELEASES / release)
            return {"release": release, "installed": False}
        BLOBS.mkdir(mode=0o700, parents=True, exist_ok=True)
        RELEASES.mkdir(mode=0o700, parents=True, exist_ok=True)
        renew_links(verify_blobs(artifacts))
        beside = RELEASES / f".new-{release[:16]}"
        shutil.rmtree(beside, ignore_errors=True)
        link_release(artifacts, beside)
        write_durably(beside / "manifest.json", text)
        keep_signatures(signatures, beside)
        for folder in [beside, *(path for path in beside.rglob("*") if path.is_dir())]:
            fsync_path(folder)
        keep_blocks(request.get("blocks", {}), artifacts)
        move(beside, RELEASES / release)
        fsync_path(RELEASES)
    return {"release": release, "installed": True}


def keep_signatures(signatures: dict[str, str], release: Path) -> None:
    folder = release / "signatures"
    for name, text in signatures.items():
        folder.mkdir(exist_ok=True)
        write_durably(folder / name, text)
    if signatures:
        fsync_path(release)


def verify_blobs(artifacts: list[dict[str, Any]]) -> set[str]:
    """Hash the files that arrived and those that were there; returns the hashes of the former, which become blobs."""
    arrived = set()
    unique = {artifact["sha256"]: artifact for artifact in artifacts}
    total, done = sum(artifact["size_bytes"] for artifact in unique.values()), 0

    def heard(count: int) -> None:
        nonlocal done
        done += count
        progress("verify", done, total, "bytes")

    for sha256, artifact in unique.items():
        blob, part = BLOBS / sha256, INCOMING / f"{sha256}.part"
        source = blob if blob.is_file() else part
        if not source.is_file():
            raise AgentFailure(
                "corrupt", f"{artifact['path']} never arrived", "deploy again: only what is missing is sent"
            )
        if sha256_file(source, heard) != sha256:
            # A wrong file is moved out of the way, so that the next deploy sends it afresh.
            remove(source)
            raise AgentFailure(
                "corrupt",
                f"{artifact['path']} doesn't have its SHA-256 on the device",
                "deploy again: it is sent afresh",
            )
        if source is part:
            seal(part)
            fsync_path(part)
            move(part, blob)
            arrived.add(sha256)
    fsync_path(BLOBS)
    return arrived


def renew_links(arrived: set[str]) -> None:
    """Give files that were sent afresh to the older releases that list them: their own ones are lost or damaged."""
    for folder in release_folders():
        for artifact in release_artifacts(folder) or []:
            blob, path = BLOBS / artifact["sha256"], folder / artifact["path"]
            if artifact["sha256"] in arrived and not (path.exists() and path.samefile(blob)):
                beside = path.with_name(f".{path.name}.tmp")
                remove(beside)
                give(blob, beside)
                move(beside, path)
                fsync_path(path.parent)


def link_release(artifacts: list[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for artifact in artifacts:
        path = folder / artifact["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        give(BLOBS / artifact["sha256"], path)


def give(blob: Path, path: Path) -> None:
    """Have a release's file be the blob or, if it is small, a copy of it."""
    if blob.stat().st_size > OWN_COPY_BYTES:
        link_or_copy(blob, path)
        return
    copy(blob, path)


def op_discard(request: dict[str, Any]) -> dict[str, Any]:
    """Throw away files of incoming/ that aren't for the store, whole or not."""
    for sha256 in request["sha256"]:
        if not HEX64.match(sha256):
            raise AgentFailure("bad_request", f"not a SHA-256: {sha256!r}")
        remove(INCOMING / f"{sha256}.part")
    return {}
