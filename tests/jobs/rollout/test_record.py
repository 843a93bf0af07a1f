"""The waves of a rollout, the condition that stops it, and its record."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.support.bundles import manifest
from tests.support.paths import DATA
from toolkit.bundle import Bundle
from toolkit.errors import ConfigError
from toolkit.jobs.rollout import DeviceRecord, Rollout, RolloutOptions
from toolkit.jobs.rollout.record import (
    State,
    canary_count,
    claim,
    find_rollout,
    list_rollouts,
    new_rollout,
    plan_waves,
    read_rollout,
    recall,
    rollout_exit_code,
    rollouts_dir,
    save_rollout,
    stop_reason,
)

FIXTURES = DATA / "rollouts"
NAMES = ("pi1", "pi2", "pi3")
BUNDLE = Bundle(Path("bundle"), manifest(()), "a" * 64)


def device(
    target: str = "pi1", state: State = "failed", *, canary: bool = False, exit_code: int | None = None
) -> DeviceRecord:
    return DeviceRecord(target=target, wave=1, canary=canary, state=state, exit_code=exit_code)


def rollout_of(names: tuple[str, ...] = NAMES, **options: object) -> Rollout:
    return new_rollout(BUNDLE, names, RolloutOptions.model_validate(options))


@pytest.mark.parametrize(
    ("canary", "total", "count"),
    [
        ("0", 5, 0),
        ("1", 5, 1),
        ("9", 5, 5),
        ("0%", 5, 0),
        ("1%", 5, 1),
        ("20%", 5, 1),
        ("21 %", 5, 2),
        ("12.5%", 16, 2),
        ("100%", 5, 5),
        ("10%", 0, 0),
    ],
)
def test_canaries(canary: str, total: int, count: int) -> None:
    assert canary_count(canary, total) == count


@pytest.mark.parametrize("canary", ["", "-1", "one", "1.5", "101%", "%", "1%%", "0x1"])
def test_what_is_no_number_of_canaries(canary: str) -> None:
    with pytest.raises(ValueError, match="is neither a number of devices nor a percentage like 10%"):
        canary_count(canary, 5)
    with pytest.raises(ValidationError):
        RolloutOptions(canary=canary)


@pytest.mark.parametrize("total", range(13))
def test_waves_have_every_device_once_in_order_and_canaries_first(total: int) -> None:
    names = [f"d{index}" for index in range(total)]
    for canaries, parallel in product(range(total + 3), range(1, total + 3)):
        waves = plan_waves(names, RolloutOptions(canary=str(canaries), parallel=parallel))
        assert [name for wave in waves for name in wave.targets] == names
        assert [wave.number for wave in waves] == list(range(1, len(waves) + 1))
        assert all(1 <= len(wave.targets) <= parallel for wave in waves)
        kinds = [wave.canary for wave in waves]
        assert kinds == sorted(kinds, reverse=True)
        assert sum(len(wave.targets) for wave in waves if wave.canary) == min(canaries, total)
        for kind in (True, False):
            sizes = [len(wave.targets) for wave in waves if wave.canary is kind]
            assert all(size == parallel for size in sizes[:-1])


def test_a_canary_that_fails_stops_whatever_is_allowed() -> None:
    assert stop_reason([device("a", "done", canary=True), device("b", canary=True)], 9) == "canary failed: b"


def test_failures_stop_when_they_are_more_than_allowed() -> None:
    tried = [device("a"), device("b", "done"), device("c")]
    assert stop_reason(tried, 2) is None
    assert stop_reason(tried, 1) == "failed devices: 2, allowed: 1"
    assert stop_reason([device("a", "done"), device("b", "pending")], 0) is None


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((), 0),
        ((None, None), 0),
        ((7, None), 7),
        ((6, 6), 6),
        ((3, 6), 7),
        ((10, 10), 10),
        ((7, 10), 10),
    ],
)
def test_the_exit_code_is_the_devices_own(codes: tuple[int | None, ...], code: int) -> None:
    assert rollout_exit_code([device(exit_code=each) for each in codes]) == code


def test_the_id_follows_from_bundle_targets_in_their_order_and_options() -> None:
    assert rollout_of().id == rollout_of().id
    others = [
        rollout_of(("pi2", "pi1", "pi3")),
        rollout_of(("pi1", "pi2")),
        rollout_of(gate=True),
        rollout_of(parallel=2),
        new_rollout(replace(BUNDLE, id="b" * 64), NAMES, RolloutOptions()),
    ]
    assert len({rollout.id for rollout in (rollout_of(), *others)}) == 6


def test_a_record_comes_back_as_it_was_kept() -> None:
    rollout = rollout_of()
    assert recall(rollout) == rollout
    changed = save_rollout(rollout.with_device(rollout.devices[1].model_copy(update={"state": "done"})))
    assert recall(rollout) == changed == find_rollout(rollout.id[:6]) == list_rollouts()[0]
    assert [each.state for each in changed.devices] == ["pending", "done", "pending"]
    assert [path.name for path in rollouts_dir().iterdir()] == [f"{rollout.id}.json"]


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_records_of_every_version_are_readable(path: Path) -> None:
    rollout = read_rollout(path)
    assert [each.state for each in rollout.devices] == ["done", "failed", "pending"]
    assert rollout.devices[1].exit_code == 7
    assert rollout.stopped is not None


def test_a_record_that_is_none_says_so_and_hides_no_other() -> None:
    rollout = save_rollout(rollout_of())
    table = json.loads((rollouts_dir() / f"{rollout.id}.json").read_text())
    (rollouts_dir() / "newer.json").write_text(json.dumps(table | {"record_version": 2}))
    assert list_rollouts() == [rollout]
    with pytest.raises(ConfigError) as error:
        find_rollout("newer")
    assert "newer.json: not a rollout: " in error.value.message
    assert error.value.hint == "a newer edgephi may have written it; --fresh starts that rollout anew"


def test_an_id_that_means_none_or_several() -> None:
    save_rollout(rollout_of())
    save_rollout(rollout_of(gate=True))
    for reference, count in (("x", "no rollout"), ("", "2 rollouts")):
        with pytest.raises(ConfigError) as error:
            find_rollout(reference)
        assert error.value.message == f"{count} called '{reference}'"
        assert error.value.hint == "edgephi rollouts list shows them"


def test_a_rollout_belongs_to_one_process() -> None:
    rollout = rollout_of()
    with claim(rollout):
        with pytest.raises(ConfigError, match="this process runs the same rollout"), claim(rollout):
            pass
        with claim(rollout_of(gate=True)):
            pass
    with claim(rollout):
        pass


def test_a_record_that_cannot_be_written_says_where() -> None:
    rollouts_dir().parent.mkdir(parents=True)
    rollouts_dir().write_text("no folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        save_rollout(rollout_of())
