"""Kept reports of one target, found by their names and by an index, so that thousands of them needn't be opened.

The files are the truth. The index only tells which of them needn't be opened: a report that is found by it is read from
its file, and an index that is missing, damaged or of another edgephi costs time, not correctness.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from toolkit import __version__
from toolkit.config import data_dir
from toolkit.errors import ConfigError
from toolkit.files import write_whole
from toolkit.metrics.report import Report, read_report, reports_dir
from toolkit.untrusted import LARGEST_JSON_BYTES, read_json, read_text_file

# `report_path` makes such names; those of the first reports hold no hash of their settings.
_NAME = re.compile(r"\d{8}T\d{6}Z-(?P<target>.+)-(?P<bundle>[0-9a-f]{8})(?:-[0-9a-f]{4})?\.json")
# This number is raised when the heads of the same reports change.
_FORMAT = 1
# Two changes of a file can have one time of change: FAT counts in steps of two seconds. So a file that was just written
# isn't in the index yet.
_SETTLED_NS = 2_000_000_000


class Head(NamedTuple):
    """The facts of a report that a search looks at before it opens it.

    `workload` is the workload's name, `runtime` a hash of the runtime's packages. `read_bytes` is the predicted number
    of bytes that decoding one token reads; None where the report says nothing about the device's speed: nothing was
    predicted, or drafts were used, whose gain depends on the text.
    """

    target: str
    target_key: str
    bundle_id: str
    agent_sha256: str
    workload: str
    runtime: str
    read_bytes: int | None

    @classmethod
    def of(cls, report: Report) -> Head:
        says_speed = report.predicted is not None and not report.settings.ngram_size
        return cls(
            report.target,
            report.target_key,
            report.bundle_id,
            report.agent_sha256,
            report.workload.name,
            _hash_of(report.runtime),
            report.predicted.read_bytes if report.predicted and says_speed else None,
        )


# From a report's field to its value in the head, for those fields that a head has.
_IN_HEAD: dict[str, Callable[[Any], str]] = {
    "target": str,
    "target_key": str,
    "bundle_id": str,
    "agent_sha256": str,
    "workload": lambda workload: str(workload.name),
    "runtime": lambda packages: _hash_of(packages),
}


class KeptReports:
    """The reports of one target that were kept when this was made, the newest first.

    A file is opened when it is asked for, and for its head only when the index doesn't know it. `save_index` keeps the
    heads of the files that this command had to open for the next one.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._folder = reports_dir()
        self._names = _names(self._folder, target)
        self._known = _load_index(target)
        self._opened = False

    def heads(self, bundle_id: str | None = None) -> Iterator[tuple[str, Head]]:
        """Give the names of files with their heads, the newest first; unreadable files are passed over.

        With `bundle_id`, files whose names tell of another bundle are left out.
        """
        for name in self._names:
            if bundle_id is not None and _says_another_bundle(name, bundle_id):
                continue
            if head := self._head(name):
                yield name, head

    def read(self, name: str) -> Report | None:
        """The report in a file; None when it can't be read."""
        try:
            return read_report(self._folder / name)
        except ConfigError:
            return None

    def save_index(self) -> None:
        """Keep the heads of files that had to be opened. Processes that do so at once lose some heads of each other."""
        if not self._opened:
            return
        present = set(self._names)
        files = {name: entry for name, entry in self._known.items() if name in present}
        # A folder that can't be written is as good as no index.
        with contextlib.suppress(ConfigError):
            _save_index(self._target, files)
        self._opened = False

    def _head(self, name: str) -> Head | None:
        try:
            stat = (self._folder / name).stat()
        except OSError:
            return None
        # The state is taken before the file is read: a file that changes in between has another state later.
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        entry = self._known.get(name)
        if entry is not None and entry[:3] == state:
            return Head(*entry[3:])
        report = self.read(name)
        if report is None:
            return None
        head = Head.of(report)
        if stat.st_mtime_ns < time.time_ns() - _SETTLED_NS:
            self._known[name] = [*state, *head]
            self._opened = True
        return head


def find_report(*, target: str, **wanted: object) -> Report | None:
    """The newest kept report of a target whose fields equal `wanted`; unreadable files are passed over."""
    wanted["target"] = target
    bundle_id = wanted.get("bundle_id")
    kept = KeptReports(target)
    try:
        for name, head in kept.heads(str(bundle_id) if bundle_id else None):
            if _says(head, wanted) and (report := kept.read(name)) and _is(report, wanted):
                return report
        return None
    finally:
        kept.save_index()


def _says(head: Head, wanted: Mapping[str, object]) -> bool:
    return all(getattr(head, name) == _IN_HEAD[name](value) for name, value in wanted.items() if name in _IN_HEAD)


def _is(report: Report, wanted: Mapping[str, object]) -> bool:
    return all(getattr(report, name) == value for name, value in wanted.items())


def _names(folder: Path, target: str) -> list[str]:
    """Files that may hold a target's reports, the newest first: all but those whose names tell of another target."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    said = ((name, _NAME.fullmatch(name)) for name in names if name.endswith(".json"))
    return sorted((name for name, found in said if found is None or found["target"] == target), reverse=True)


def _says_another_bundle(name: str, bundle_id: str) -> bool:
    found = _NAME.fullmatch(name)
    return found is not None and found["bundle"] != bundle_id[:8]


def _index_file(target: str) -> Path:
    return data_dir() / "report-index" / f"{target}.json"


def _load_index(target: str) -> dict[str, list[Any]]:
    """Each file's size, time of change in nanoseconds, inode and head, by its name; {} when the index isn't whole."""
    with contextlib.suppress(OSError, ValueError):
        digest, _, body = read_text_file(_index_file(target), LARGEST_JSON_BYTES).partition("\n")
        if digest == _hash(body):
            made_by, files = read_json(body.encode(), controls=True)
            if made_by == _made_by():
                return dict(files)
    return {}


def _save_index(target: str, files: Mapping[str, Sequence[Any]]) -> None:
    """Write an index beside and rename it. Raises ConfigError when that fails."""
    body = json.dumps([_made_by(), files])
    write_whole(_index_file(target), f"{_hash(body)}\n{body}")


def _made_by() -> list[Any]:
    return [_FORMAT, __version__]


def _hash_of(packages: Sequence[str]) -> str:
    return _hash("\n".join(packages))[:16]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
