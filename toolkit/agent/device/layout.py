"""The install root's layout, and the way to write a file there that no power cut can halve."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from .files import fsync_path, move
from .protocol import CHUNK

AGENT_FILE = Path(__file__).absolute().parents[1].resolve()
ROOT = AGENT_FILE.parent.parent
POINTER = ROOT / "current.json"
BLOBS = ROOT / "blobs" / "sha256"
BLOCKS = ROOT / "blocks"
INCOMING = ROOT / "incoming"
RELEASES = ROOT / "releases"
RUNTIMES = ROOT / "runtimes"
LOCK_NAME = re.compile(r"[0-9a-f]{16}\Z")


def flush_tree(folder: Path) -> None:
    """Flush the thousands of files that other programs wrote into a folder: all files of the system if that can be."""
    if hasattr(os, "sync"):
        os.sync()
        return
    for path in folder.rglob("*"):
        if path.is_file():
            fsync_path(path)


def write_durably(path: Path, content: str | bytes) -> None:
    """Write beside, flush, rename, flush the folder: a power cut leaves the old or the new content, whole."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with beside.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    move(beside, path)
    fsync_path(path.parent)


def sha256_file(path: Path, heard: Callable[[int], None] | None = None) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while True:
            chunk = file.read(CHUNK)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)
            if heard:
                heard(len(chunk))
