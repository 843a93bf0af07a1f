"""toolkit.metrics.kept_reports: the reports that are found, the files that stay closed, and the limits of an index."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.figures import make_report, make_run
from tests.support.paths import DATA
from toolkit.catalog.settings import RuntimeSettings
from toolkit.config import data_dir
from toolkit.metrics import Report
from toolkit.metrics.kept_reports import KeptReports, find_report
from toolkit.metrics.report import report_path, reports_dir, save_report

NAMES = ("pi5", "pi5-kitchen", "kitchen-pi5", "my-pi5-2", "pi5-bbbbbbbb", "pi5-bbbbbbbb-1d63", "pi", "pi5.local")
OLD_S = 1_767_225_600


def report(target: str = "pi5", day: int = 1, **changes: object) -> Report:
    made = make_report([make_run()], created=f"2026-01-{day:02d}T00:00:00Z", target=target)
    return made.model_copy(update=changes)


def keep(kept: Report) -> Path:
    """Save a report with an old file time: the index remembers no file that is younger than two seconds."""
    path = save_report(kept)
    os.utime(path, (OLD_S, OLD_S))
    return path


def index_of(target: str = "pi5") -> Path:
    return data_dir() / "report-index" / f"{target}.json"


def indexed(target: str = "pi5") -> set[str]:
    _, files = json.loads(index_of(target).read_text().partition("\n")[2])
    return set(files)


def rewrite(path: Path, old: str, new: str) -> None:
    """Change a file and keep its size and time, so that only a reader of the file sees the change."""
    assert len(old) == len(new) and old in path.read_text()
    before = path.stat()
    with path.open("r+") as file:
        text = file.read().replace(old, new)
        file.seek(0)
        file.write(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_names_that_hold_each_other_are_told_apart() -> None:
    kept = {name: report(name) for name in NAMES}
    for each in kept.values():
        keep(each)
    assert {name: find_report(target=name) for name in NAMES} == kept
    assert find_report(target="pi5-kit") is None
    assert [len(list(KeptReports(name).heads())) for name in NAMES] == [1] * len(NAMES)


def test_names_of_before_settings_are_read_too() -> None:
    kept = [report("pi5"), report("pi5-bbbbbbbb"), report("pi5-kitchen")]
    for each in kept:
        path = keep(each)
        path.rename(path.with_name(path.name.replace("-1d63.json", ".json")))
    assert [find_report(target=each.target, bundle_id="b" * 64) for each in kept] == kept


def test_a_report_under_a_name_of_its_users_own_is_found() -> None:
    reports_dir().mkdir(parents=True)
    shutil.copy(DATA / "reports" / "v1-phi3-nano.json", reports_dir())
    target = json.loads((DATA / "reports" / "v1-phi3-nano.json").read_text())["target"]
    found = find_report(target=target)
    assert found is not None and found.target == target
    assert find_report(target=f"{target}-2") is None


def test_the_newest_is_found() -> None:
    for day in (3, 1, 20, 7):
        keep(report(day=day))
        keep(report("pi5-kitchen", day=day + 1))
    found = find_report(target="pi5")
    assert found is not None and found.created_utc == "2026-01-20T00:00:00Z"
    assert [name[:8] for name, _ in KeptReports("pi5").heads()] == ["20260120", "20260107", "20260103", "20260101"]


@pytest.mark.parametrize("content", [b"", b"{", b"5", b"[]", b"\xff\xfe", b'{"report_version": 9}'])
def test_a_damaged_file_hides_no_other_and_mends_when_it_is_mended(content: bytes) -> None:
    keep(report(day=1))
    damaged = keep(newest := report(day=2))
    damaged.write_bytes(content)
    os.utime(damaged, (OLD_S, OLD_S))
    for _ in range(2):
        assert find_report(target="pi5") == report(day=1)
    keep(newest)
    assert find_report(target="pi5") == newest


def test_a_folder_that_is_missing_or_holds_a_folder_has_no_reports() -> None:
    assert find_report(target="pi5") is None
    (reports_dir() / "20260102T030405Z-pi5-bbbbbbbb-1d63.json").mkdir(parents=True)
    assert find_report(target="pi5") is None


def test_files_named_for_another_target_or_bundle_are_not_opened() -> None:
    keep(report(day=1))
    # A search that opened these files would take them for the newest reports.
    text = report(day=9).model_dump_json()
    for name in ("pi5-kitchen-bbbbbbbb-1d63", "kitchen-pi5-bbbbbbbb", "pi5-cccccccc-1d63"):
        (reports_dir() / f"20260109T000000Z-{name}.json").write_text(text)
    found = find_report(target="pi5", bundle_id="b" * 64)
    assert found == report(day=1)


def test_the_search_stops_at_the_newest_that_fits() -> None:
    paths = [keep(report(day=day, agent_sha256=f"{day % 2}" * 64)) for day in range(1, 9)]
    assert find_report(target="pi5", agent_sha256="1" * 64) == report(day=7, agent_sha256="1" * 64)
    assert indexed() == {path.name for path in paths[-2:]}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"target_key": "new"}, {"target_key": "new"}),
        ({"agent_sha256": "9" * 64}, {"agent_sha256": "9" * 64}),
        ({"runtime": ["a==1", "b==2"]}, {"runtime": ["a==1", "b==2"]}),
        ({"settings": RuntimeSettings(threads=3)}, {"settings": RuntimeSettings(threads=3)}),
        ({"workload": report().workload.model_copy(update={"name": "v"})}, None),
        ({"workload": report().workload.model_copy(update={"runs": 9})}, None),
        ({"recipe": "other"}, {"recipe": "other"}),
    ],
    ids=lambda value: ",".join(value) if value else "",
)
def test_with_and_without_an_index_the_same_is_found(
    changes: dict[str, object], wanted: dict[str, object] | None
) -> None:
    keep(report(day=1, **changes))
    keep(report(day=2))
    for _ in range(3):
        assert find_report(target="pi5", **(wanted or changes)) == report(day=1, **changes)
        assert find_report(target="pi5", target_key="k") is not None
        assert find_report(target="pi5", target_key="none") is None
    assert len(indexed()) == 2


def test_what_the_index_knows_is_not_opened_again() -> None:
    path = keep(report(target_key="first"))
    assert find_report(target="pi5", target_key="other") is None
    rewrite(path, '"first"', '"other"')
    assert find_report(target="pi5", target_key="other") is None
    # A report that the index gives is read from its file: so the index can hide such a change, but invent no report.
    assert find_report(target="pi5", target_key="first") is None


@pytest.mark.parametrize("change", ["size", "time", "replaced"])
def test_a_changed_file_is_opened_again(change: str) -> None:
    path = keep(report(target_key="first"))
    assert find_report(target="pi5", target_key="other") is None
    before = path.stat()
    if change == "size":
        path.write_text(path.read_text().replace('"first"', '"other"') + "\n")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "time":
        rewrite(path, '"first"', '"other"')
        os.utime(path, (OLD_S + 1, OLD_S + 1))
    else:
        beside = path.with_suffix(".new")
        beside.write_text(path.read_text().replace('"first"', '"other"'))
        os.utime(beside, ns=(before.st_atime_ns, before.st_mtime_ns))
        beside.replace(path)
    assert find_report(target="pi5", target_key="other") == report(target_key="other")
    assert find_report(target="pi5", target_key="first") is None


def test_what_was_just_written_is_not_remembered_yet() -> None:
    path = save_report(report(target_key="first"))
    assert find_report(target="pi5", target_key="other") is None
    assert not index_of().exists()
    rewrite(path, '"first"', '"other"')
    assert find_report(target="pi5", target_key="other") == report(target_key="other")


def test_what_is_gone_leaves_the_index() -> None:
    first, second = keep(report(day=1)), keep(report(day=2))
    assert find_report(target="pi5", target_key="none") is None
    assert indexed() == {first.name, second.name}
    second.unlink()
    third = keep(report(day=3))
    assert find_report(target="pi5") == report(day=3)
    assert indexed() == {first.name, third.name}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _flipped(path: Path) -> None:
    path.write_text(path.read_text().replace('"first"', '"thief"'))


def _foreign(path: Path) -> None:
    path.write_bytes(b"\xff" * 99)


def _older(path: Path) -> None:
    made_by, files = json.loads(path.read_text().partition("\n")[2])
    for entry in files.values():
        entry[4] = "thief"
    body = json.dumps([[made_by[0] - 1, *made_by[1:]], files])
    path.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [Path.unlink, _emptied, _cut, _flipped, _foreign, _older, _folder])
def test_an_index_that_is_not_whole_is_made_again(damage: Callable[[Path], None]) -> None:
    keep(report(day=1, target_key="first"))
    keep(report(day=2))
    assert find_report(target="pi5", target_key="none") is None
    whole = index_of().read_bytes()
    damage(index_of())
    for _ in range(2):
        assert find_report(target="pi5", target_key="first") == report(day=1, target_key="first")
        assert find_report(target="pi5", target_key="thief") is None
    if damage is not _folder:
        assert index_of().read_bytes() == whole


def test_where_no_index_can_be_written_reports_are_found_all_the_same() -> None:
    keep(report())
    (data_dir() / "report-index").write_text("in the way")
    for _ in range(2):
        assert find_report(target="pi5") == report()


def test_of_two_that_keep_the_index_at_once_the_later_one_wins_and_nothing_is_lost_for_good() -> None:
    keep(report(day=1))
    one = KeptReports("pi5")
    assert len(list(one.heads())) == 1
    keep(report(day=2))
    other = KeptReports("pi5")
    assert len(list(other.heads())) == 2
    other.save_index()
    one.save_index()
    assert len(indexed()) == 1
    assert find_report(target="pi5") == report(day=2)
    assert find_report(target="pi5", target_key="none") is None
    assert len(indexed()) == 2


# The time of one file changes before each search, so that each search writes the index.
_SEARCHES = """
import itertools, os, sys
from toolkit.metrics.kept_reports import KeptReports
print("ready", flush=True)
for second in itertools.count():
    os.utime(sys.argv[1], (second, second))
    kept = KeptReports("pi5")
    assert len(list(kept.heads())) == 12
    kept.save_index()
"""


def test_processes_at_once_and_a_kill_in_the_middle_leave_a_whole_index() -> None:
    paths = [keep(report(day=day)) for day in range(1, 13)]
    argv = [sys.executable, "-c", _SEARCHES, str(paths[-1])]
    searches = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for search in searches:
            assert search.stdout is not None and search.stdout.readline()
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            assert find_report(target="pi5") == report(day=12)
        assert [search.poll() for search in searches] == [None, None]
    finally:
        for search in searches:
            search.kill()
        assert [search.wait() for search in searches] == [-signal.SIGKILL] * 2
    assert indexed() <= {path.name for path in paths}
    assert find_report(target="pi5") == report(day=12)


def test_a_save_writes_no_index_and_names_files_as_before() -> None:
    assert keep(report()) == report_path(report())
    assert not index_of().exists()
