"""Real searches over real builds of the reference model, measured on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.support.asked import operations, record_requests
from tests.support.builds import bundle as build, follow, seed_cache
from tests.support.devices import pointer, target_over
from tests.support.profiles import write_own
from toolkit.bundle import list_bundles
from toolkit.catalog import Target, Workload, load_profile, load_recipe, load_target
from toolkit.catalog.model import known_shape
from toolkit.deploy import deploy
from toolkit.device import connect
from toolkit.emulate import EmbeddedServer
from toolkit.errors import ConfigError, HostUnreachable
from toolkit.events import Event, Step, Warning_
from toolkit.jobs.tune import Question, SearchOptions, tune
from toolkit.jobs.tune.search import Outcome
from toolkit.metrics import plan
from toolkit.metrics.report import read_report, reports_dir

TINY = Workload(name="tiny", description="", prompt_tokens=96, generate_tokens=12, warmup=0, repetitions=3, runs=1)


@pytest.fixture
def target(local: Path, tmp_path: Path) -> Target:
    """This machine, with the three builds that the searches here need."""
    for recipe in ("fp32", "int4-rtn-b32", "int4-rtn-b128"):
        seed_cache(tmp_path / "cache", recipe)
    return load_target("local")


def search(target: Target, events: list[Event] | None = None, **changes: object) -> Outcome:
    asked = {"workload": TINY, "recipes": ("int4-rtn-b128",)} | {
        key: changes.pop(key) for key in list(changes) if key in Question.__dataclass_fields__
    }
    options = SearchOptions(**({"quality_tokens": 512} | changes))  # type: ignore[arg-type]
    return follow(tune("phi3-nano", target, Question(**asked), options), events)  # type: ignore[arg-type]


def begun(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Step) and event.text.startswith("trial ")]


def kept_reports() -> list[Path]:
    return sorted(reports_dir().glob("*.json"))


def test_each_trial_probes_and_provisions_once(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = record_requests(monkeypatch)
    search(target, trials=2, quality=False, recipes=("int4-rtn-b32",))
    asked = operations(sent)
    assert asked[:11] == [
        *("settle", "probe", "provision"),
        *("probe", "provision", "missing", "hold", "install", "releases", "measure", "bench"),
    ]
    # When the second trial is the better one, both are measured once more.
    again = ["probe", "provision", "missing", "releases", "bench"]
    assert asked[11:] in (again, again * 3)


def test_a_search_ends_in_a_front_a_sentence_and_two_files(target: Target, local: Path) -> None:
    with connect(target) as device:
        follow(deploy(build("fp32"), device))
    active = pointer(local)
    outcome = search(target, trials=3)
    assert pointer(local) == active
    assert [row.state for row in outcome.rows] == ["measured"] * 3
    assert outcome.rows[0].point == outcome.proposal.default
    assert [row.point.recipe for row in outcome.rows[:2]] == ["int4-rtn-b32", "int4-rtn-b128"]
    assert len({row.point for row in outcome.rows}) == 3
    for row in outcome.rows:
        assert row.report_file in kept_reports()
        assert row.report is not None and row.report.settings == row.point.settings
        assert row.quality["kld_mean"] > 0
        # The report has the host's quality figures beside the device's.
        assert row.report.quality
    assert any(row.on_front for row in outcome.rows)
    assert outcome.stopped == "3 trials are done"
    assert "the default" in outcome.verdict.sentence
    tuned = load_profile(str(outcome.profile_file))
    assert tuned.runtime.settings.resolved(1) == outcome.recommended.point.settings
    recipe = load_recipe(str(outcome.recipe_file))
    assert recipe.name == tuned.defaults.recipe == outcome.recommended.point.recipe
    assert recipe.table() == load_recipe(recipe.name).table()
    events: list[Event] = []
    again = search(target, events, trials=3)
    assert begun(events) == []
    assert (again.rows, again.verdict) == (outcome.rows, outcome.verdict)


def test_the_budget_is_looked_at_before_each_trial_but_the_first(target: Target) -> None:
    outcome = search(target, budget_s=0.001, quality=False)
    assert len(outcome.rows) == 1
    assert outcome.stopped == "the budget is used"
    assert outcome.verdict.sentence.startswith("Keep the default, int4-rtn-b32 with ")
    assert outcome.rows[0].quality == {}
    assert len(search(target, budget_s=0.001, quality=False).rows) == 2
    assert len(search(target, budget_s=0.001, quality=False, fresh=True).rows) == 1


def test_what_loses_too_much_quality_never_reaches_the_device(target: Target, local: Path) -> None:
    events: list[Event] = []
    with pytest.raises(ConfigError) as caught:
        search(target, events, max_ppl_increase=0.0)
    assert caught.value.message.startswith("no recipe holds the quality bound: int4-rtn-b32 +")
    assert "% perplexity, the bound is +0.00%; int4-rtn-b128 +" in caught.value.message
    assert caught.value.hint == "give a larger --max-ppl-increase, or other recipes"
    assert kept_reports() == []
    assert not any((local / "releases").glob("*"))
    with pytest.raises(ConfigError, match="no recipe holds the quality bound"):
        search(target, max_ppl_increase=0.0)


def test_what_does_not_fit_is_never_built(target: Target) -> None:
    shape, here = known_shape("phi3-nano"), load_profile("local")
    large, small = (plan(shape, load_recipe(name), here).needed_bytes for name in ("int4-rtn-b32", "int4-rtn-b128"))
    reserved = 2**30
    ram = f"{reserved + (large + small) // 2} B"
    write_own("small", {"schema_version": 1, "extends": "local", "hardware": {"ram": ram}})
    target = target.model_copy(update={"profile": "small"})
    events: list[Event] = []
    outcome = search(target, events, trials=1, quality=False)
    left_out = [event.text for event in events if isinstance(event, Step) and event.text.startswith("leave out")]
    assert re.match(r"leave out int4-rtn-b32: needs 1\d\d MiB", left_out[0])
    assert [row.point.recipe for row in outcome.rows] == ["int4-rtn-b128"]
    assert "; the default, int4-rtn-b32, has no figures: it was left out" in outcome.verdict.sentence
    assert load_profile(str(outcome.profile_file)).defaults.recipe == "int4-rtn-b128"


def test_when_nothing_fits(target: Target) -> None:
    write_own("tiny", {"schema_version": 1, "extends": "local", "hardware": {"ram": "1025 MiB"}})
    with pytest.raises(ConfigError) as caught:
        search(target.model_copy(update={"profile": "tiny"}))
    assert re.match(r"no recipe fits 'tiny': int4-rtn-b32 needs 1\d\d MiB", caught.value.message)


def broken_recipe(name: str) -> None:
    folder = Path(os.environ["EDGEPHI_CONFIG_DIR"], "recipes")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(
        'description = "d"\nalgorithm = "gptq"\nbits = 4\nblock_size = 32\n[calibration]\nfile = "missing.jsonl"\n'
    )


def test_a_trial_that_fails_is_noted_and_the_search_goes_on(target: Target) -> None:
    broken_recipe("broken")
    events: list[Event] = []
    outcome = search(target, events, recipes=("broken", "int4-rtn-b128"), trials=4, quality=False)
    states = {row.point.recipe: row.state for row in outcome.rows}
    assert states == {"int4-rtn-b32": "measured", "int4-rtn-b128": "measured", "broken": "failed"}
    failed = next(row for row in outcome.rows if row.state == "failed")
    assert failed.reason is not None and "missing.jsonl: no such calibration file" in failed.reason
    assert any(isinstance(event, Warning_) and "missing.jsonl" in event.text for event in events)


def test_when_all_fail_the_first_failure_is_the_error_also_later(target: Target) -> None:
    broken_recipe("broken")
    write_own("board", {"schema_version": 1, "extends": "local", "defaults": {"recipe": "broken"}})
    target = target.model_copy(update={"profile": "board"})
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            search(target, recipes=("broken",))
        assert "missing.jsonl: no such calibration file" in caught.value.message
        assert caught.value.hint is not None


def test_without_a_reference_the_search_ends_and_says_how_to_do_without(target: Target) -> None:
    broken_recipe("fp32")
    for folder in (bundle.path for bundle in list_bundles() if bundle.manifest.recipe["name"] == "fp32"):
        shutil.rmtree(folder)
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            search(target)
        assert "missing.jsonl: no such calibration file" in caught.value.message
        assert str(caught.value.hint).endswith("; --no-quality searches without it")
    assert kept_reports() == []


def test_a_device_that_goes_away_ends_the_search_and_the_next_call_goes_on(target: Target, local: Path) -> None:
    with EmbeddedServer(local.parent) as server:
        remote = target_over(server, local)
        service = tune(
            "phi3-nano", remote, Question(TINY, recipes=("int4-rtn-b128",)), SearchOptions(trials=3, quality=False)
        )
        with pytest.raises(HostUnreachable):
            for event in service:
                if isinstance(event, Step) and event.text.startswith("trial 2"):
                    server.kill()
    assert len(kept_reports()) == 1
    with EmbeddedServer(local.parent) as server:
        events: list[Event] = []
        outcome = search(target_over(server, local), events, trials=3, quality=False)
    assert [row.state for row in outcome.rows] == ["measured"] * 3
    assert begun(events)[0].startswith("trial 2: int4-rtn-b128")


def test_every_trial_says_in_its_report_what_it_was(target: Target) -> None:
    outcome = search(target, trials=1, quality=False)
    (row,) = outcome.rows
    assert row.report_file is not None
    assert read_report(row.report_file) == row.report
    assert json.loads(row.report_file.read_text())["settings"] == row.point.settings.model_dump()


def test_a_report_that_somebody_removed_is_missed_and_not_trusted(target: Target) -> None:
    outcome = search(target, trials=1, quality=False)
    assert outcome.rows[0].report_file is not None
    outcome.rows[0].report_file.unlink()
    with pytest.raises(ConfigError) as caught:
        search(target, trials=1, quality=False)
    assert caught.value.message.startswith("no trial gave figures: its report ")
    assert caught.value.hint == "--fresh measures again"
    assert search(target, trials=1, quality=False, fresh=True).rows[0].report is not None
