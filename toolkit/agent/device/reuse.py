"""Parts of files that other releases here have already: they are copied, so that they needn't be sent.

Every large file's parts are listed in blocks/<hash of the file>.json, one behind the other, as the host cut it. A list
only says where to look: every copied part is hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from .layout import BLOBS, BLOCKS, INCOMING, ROOT, write_durably
from .protocol import CHUNK, HEX64, AgentFailure, progress

# No host cuts longer parts. A whole one is held in memory.
LONGEST_BLOCK = 16 << 20


def checked_blocks(blocks: Any, size: int) -> list[tuple[int, str]]:
    """The list of a file's parts. Raises AgentFailure when it isn't one for a file of that size."""
    parts = [(length, sha256) for length, sha256 in blocks]
    for length, sha256 in parts:
        if not isinstance(length, int) or not 0 < length <= LONGEST_BLOCK or not HEX64.match(sha256):
            raise AgentFailure("bad_request", f"not a part of a file: {length!r}, {sha256!r}")
    if sum(length for length, _ in parts) != size:
        raise AgentFailure("bad_request", "the parts aren't the file's")
    return parts


def keep_blocks(lists: dict[str, Any], artifacts: list[dict[str, Any]]) -> None:
    """Keep the lists of a release's files, for later releases; a list that can't be written is left out."""
    for artifact in artifacts:
        sha256 = artifact["sha256"]
        if sha256 in lists:
            parts = checked_blocks(lists[sha256], artifact["size_bytes"])
            with contextlib.suppress(OSError):
                BLOCKS.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_durably(BLOCKS / f"{sha256}.json", json.dumps(parts, separators=(",", ":")))


def op_reuse(request: dict[str, Any]) -> dict[str, Any]:
    """Begin lacking files with the parts that other files here have; the host sends the rest.

    Files that are here, or have begun to arrive, stay as they are. If the disk hasn't room for all, nothing is done.
    """
    files = []
    for file in request["files"]:
        sha256, size = file["sha256"], file["size_bytes"]
        if not HEX64.match(sha256):
            raise AgentFailure("bad_request", f"not a SHA-256: {sha256!r}")
        files.append((sha256, size, checked_blocks(file["blocks"], size)))
    return {"reused_bytes": reuse(files)}


def reuse(files: list[tuple[str, int, list[tuple[int, str]]]]) -> int:
    """Begin files, each given as a hash, a size and its parts; returns the number of bytes that were copied."""
    lacking = [
        file for file in files if not (BLOBS / file[0]).is_file() and not (INCOMING / f"{file[0]}.part").exists()
    ]
    if sum(size for _, size, _ in lacking) > shutil.disk_usage(ROOT).free:
        return 0
    places = find_places({sha256 for _, _, parts in lacking for _, sha256 in parts})
    total = sum(length for _, _, parts in lacking for length, sha256 in parts if sha256 in places)
    copying = Copying(places, total)
    return sum(copying.begin(sha256, parts) for sha256, _, parts in lacking) if total else 0


def find_places(wanted: set[str]) -> dict[str, tuple[Path, int]]:
    """The file and the offset at which each part should lie, by hash, for those of the hashes that a list has."""
    places: dict[str, tuple[Path, int]] = {}
    for path in sorted(BLOCKS.glob("*.json")) if BLOCKS.is_dir() else []:
        blob, offset = BLOBS / path.stem, 0
        with contextlib.suppress(OSError, ValueError, TypeError, AgentFailure):
            for length, sha256 in checked_blocks(json.loads(path.read_bytes()), blob.stat().st_size):
                if sha256 in wanted:
                    places.setdefault(sha256, (blob, offset))
                offset += length
    return places


class Copying:
    """Copies parts to their places in other files, and counts the bytes of those that had their hash."""

    def __init__(self, places: dict[str, tuple[Path, int]], total: int) -> None:
        self.places, self.total, self.done = places, total, 0

    def begin(self, sha256: str, parts: list[tuple[int, str]]) -> int:
        """Write the parts of a file that are here; they get its name in incoming/ only once all of them are written."""
        beside, offset, right = INCOMING / f"{sha256}.reuse", 0, 0
        INCOMING.mkdir(mode=0o700, parents=True, exist_ok=True)
        with beside.open("wb") as target:
            for length, part in parts:
                if part in self.places:
                    target.seek(offset)
                    right += length if self.copy(target, length, part) else 0
                    self.done += length
                    progress("reuse", self.done, self.total, "bytes")
                offset += length
        # Less than a chunk can't be recognized: it would be sent again.
        if right >= CHUNK:
            beside.replace(INCOMING / f"{sha256}.part")
            return right
        beside.unlink()
        return 0

    def copy(self, target: BinaryIO, length: int, sha256: str) -> bool:
        """Copy a part. False when the disk can't read it any more or its hash differs: the host overwrites it then."""
        blob, offset = self.places[sha256]
        digest, left = hashlib.sha256(), length
        try:
            with blob.open("rb", buffering=0) as source:
                source.seek(offset)
                while left:
                    data = source.read(min(left, CHUNK))
                    if not data:
                        return False
                    target.write(data)
                    digest.update(data)
                    left -= len(data)
        except OSError:
            return False
        return digest.hexdigest() == sha256
