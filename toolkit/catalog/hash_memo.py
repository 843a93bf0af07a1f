"""Hashes of large files, remembered between commands, so that a model of gigabytes isn't read for each of them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.config import cache_dir
from toolkit.errors import ConfigError
from toolkit.files import write_whole
from toolkit.untrusted import read_json_file

_CHUNK = 4 << 20


def chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


class HashMemo:
    """Hashes of large files by path, size, time and inode, kept in `hashes.json`."""

    def __init__(self, entries: dict[str, list[Any]]) -> None:
        self._entries = entries
        self._changed = False

    @classmethod
    def load(cls) -> HashMemo:
        # A memo that can't be read costs time, not correctness.
        with contextlib.suppress(OSError, ValueError):
            entries = read_json_file(cls._path(), controls=True)
            if isinstance(entries, dict):
                return cls(entries)
        return cls({})

    @staticmethod
    def _path() -> Path:
        return cache_dir() / "hashes.json"

    @staticmethod
    def _key(path: Path) -> tuple[str, list[int]]:
        # The hub's snapshots are links into its blobs: the entry is for the blob.
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
        """Keep the memo. Where that fails the next command hashes again."""
        if not self._changed:
            return
        with contextlib.suppress(ConfigError):
            write_whole(self._path(), json.dumps(self._entries, indent=0))
