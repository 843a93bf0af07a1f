"""Files of this machine: written whole or not at all, locked between processes, hashed once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from toolkit.config import cache_dir, shown
from toolkit.errors import ConfigError

_CHUNK = 4 << 20


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all; only its user can read a new one. Raises ConfigError when that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not *.toml, so that a leftover never shows up as a target.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
        beside = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise ConfigError(f"{shown(path)}: cannot be written: {exc.strerror}") from exc


def chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


class HashMemo:
    """Hashes of large files by what `stat` says of them, kept in `hashes.json`."""

    def __init__(self, entries: dict[str, list[Any]]) -> None:
        self._entries = entries
        self._changed = False

    @classmethod
    def load(cls) -> HashMemo:
        # A memo that can't be read costs time, not correctness.
        with contextlib.suppress(OSError, ValueError):
            entries = json.loads(cls._path().read_bytes())
            if isinstance(entries, dict):
                return cls(entries)
        return cls({})

    @staticmethod
    def _path() -> Path:
        return cache_dir() / "hashes.json"

    @staticmethod
    def _key(path: Path) -> tuple[str, list[int]]:
        # The hub's snapshots are links into its blobs: the file itself is what was hashed.
        real = path.resolve()
        stat = real.stat()
        return str(real), [stat.st_size, stat.st_mtime_ns, stat.st_ino]

    def recall(self, path: Path) -> str | None:
        key, stat = self._key(path)
        entry = self._entries.get(key)
        if isinstance(entry, list) and entry[:-1] == stat and re.fullmatch("[0-9a-f]{64}", str(entry[-1])):
            return str(entry[-1])
        return None

    def remember(self, path: Path, digest: str) -> None:
        key, stat = self._key(path)
        self._entries[key] = [*stat, digest]
        self._changed = True

    def save(self) -> None:
        if not self._changed:
            return
        path = self._path()
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(json.dumps(self._entries, indent=0), encoding="utf-8")
        beside.replace(path)


def try_lock(file: IO[bytes]) -> bool:
    """Take the lock on an open file, if nobody has it. Closing the file, or dying, gives it back."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
