"""The whole loop, for several targets and recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.asked import operations, record_requests
from tests.support.builds import follow, seed_cache
from tests.support.devices import target_at
from toolkit.catalog import Target
from toolkit.catalog.workload import load_workload
from toolkit.errors import ConfigError, HostUnreachable
from toolkit.events import Event, Step
from toolkit.jobs import LoopOptions
from toolkit.jobs.run import run
from toolkit.optimize import BuildOptions

RECIPES = ("fp32", "int4-rtn-b32")
ONE_RUN = load_workload("quick").model_copy(update={"runs": 1})


@pytest.fixture
def options(tmp_path: Path, local: Path) -> LoopOptions:
    for recipe in RECIPES:
        seed_cache(tmp_path / "cache", recipe)
    return LoopOptions(load_workload("quick"))


def test_one_row_for_each_recipe_and_a_rerun_measures_nothing_again(root: Path, options: LoopOptions) -> None:
    rows = follow(run("phi3-nano", [target_at(root)], RECIPES, options))
    assert [(row.target, row.recipe, row.error) for row in rows] == [("here", recipe, None) for recipe in RECIPES]
    assert [row.report.bundle_bytes > 0 for row in rows if row.report] == [True, True]
    events: list[Event] = []
    again = follow(run("phi3-nano", [target_at(root)], RECIPES, options), events)
    assert [row.report for row in again] == [row.report for row in rows]
    texts = [event.text for event in events if isinstance(event, Step) and not event.skipped]
    assert not [text for text in texts if "run 1 of" in text or "quantize" in text or "install" in text]


def test_without_recipes_the_profile_decides(root: Path, options: LoopOptions) -> None:
    (row,) = follow(run("phi3-nano", [target_at(root)], (), options))
    assert row.recipe == "int4-rtn-b32"


def test_each_of_two_connections_probes_and_provisions_once(
    root: Path, options: LoopOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = record_requests(monkeypatch)
    (row,) = follow(run("phi3-nano", [target_at(root)], RECIPES[1:], replace(options, workload=ONE_RUN)))
    assert row.report is not None
    assert operations(sent) == [
        *("settle", "probe", "provision"),
        *("probe", "provision", "missing", "hold", "install", "releases", "check", "activate"),
        *("releases", "measure", "bench"),
    ]


def test_calibration_text_goes_to_the_recipes_that_look_at_some(root: Path, options: LoopOptions) -> None:
    Path("tiny.txt").write_text("too few words")
    given = replace(options, build=BuildOptions(calibration=Path("tiny.txt")))
    plain, calibrated = follow(run("phi3-nano", [target_at(root)], ("int4-rtn-b32", "int4-gptq-b32"), given))
    assert plain.report is not None
    assert calibrated.error is not None and "tiny.txt" in calibrated.error.message
    with pytest.raises(ConfigError, match="takes no calibration text"):
        follow(run("phi3-nano", [target_at(root)], ("int4-rtn-b32",), given))


def test_a_target_that_is_off_does_not_take_the_others_along(root: Path, options: LoopOptions) -> None:
    off = Target(name="off", host="127.0.0.1", port=9, profile="local", known_hosts=root / "none")
    rows = follow(run("phi3-nano", [off, target_at(root)], ("int4-rtn-b32",), options))
    assert isinstance(rows[0].error, HostUnreachable)
    assert rows[1].report is not None
