from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.builds import follow
from toolkit import localhost
from toolkit.catalog import load_recipe
from toolkit.catalog.preset import PRESETS
from toolkit.catalog.shape import parse_shape
from toolkit.errors import ConfigError, HostDiskFull
from toolkit.events import Event, Warning_
from toolkit.localhost import Memory
from toolkit.metrics.build_needs import HostNeeds, check_host, host_needs

GB = 10**9


def needs(model: str, recipe: str) -> HostNeeds:
    return host_needs(parse_shape(PRESETS[model].config(), model), load_recipe(recipe), "cpu")


def have(monkeypatch: pytest.MonkeyPatch, memory: Memory | None) -> None:
    monkeypatch.setattr(localhost, "available_memory", lambda: memory)


def test_the_builds_that_have_to_fit_are_expected_to() -> None:
    assert needs("phi-3-mini-4k", "int4-rtn-b32").ram_bytes < 8 << 30
    assert needs("phi-3-medium-4k", "int4-rtn-b32").ram_bytes < 16 << 30


@pytest.mark.parametrize(
    ("recipe", "ram_gb", "disk_gb"),
    [("int4-rtn-b32", 2.05, 2.02), ("fp32", 3.33, 5.2), ("int4-quarot-rtn-b32", 4.03, 3.3)],
)
def test_what_a_four_layer_cut_of_mini_took(recipe: str, ram_gb: float, disk_gb: float) -> None:
    shape = parse_shape(PRESETS["phi-3-mini-4k"].cut(4).config(), "cut")
    found = host_needs(shape, load_recipe(recipe), "cpu")
    assert found.ram_bytes / GB == pytest.approx(ram_gb, rel=0.15)
    assert found.disk_bytes / GB == pytest.approx(disk_gb, rel=0.20)


def test_too_little_memory_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    have(monkeypatch, Memory(3 * GB, GB, None))
    with pytest.raises(ConfigError) as caught:
        follow(check_host(HostNeeds(5 * GB, 0), "mini", tmp_path, force=False))
    assert caught.value.message == "building mini needs about 4.66 GiB of memory on this machine; 3.73 GiB are free"
    assert caught.value.hint is not None and "--force" in caught.value.hint
    assert caught.value.exit_code == 3


def test_a_containers_limit_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    have(monkeypatch, Memory(20 * GB, 0, 4 * GB))
    with pytest.raises(ConfigError, match=r"3\.73 GiB are free under its memory limit"):
        follow(check_host(HostNeeds(5 * GB, 0), "mini", tmp_path, force=False))


def test_swap_counts_and_an_unknown_memory_is_no_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for memory in (Memory(3 * GB, 3 * GB, None), None):
        have(monkeypatch, memory)
        follow(check_host(HostNeeds(5 * GB, 0), "mini", tmp_path, force=False))


def test_too_little_disk_is_refused_also_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    with pytest.raises(HostDiskFull, match=r"writes up to 1,000 TB below"):
        follow(check_host(HostNeeds(0, 10**15), "mini", tmp_path / "a" / "b", force=False))


def test_force_warns_of_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    have(monkeypatch, Memory(GB, 0, None))
    events: list[Event] = []
    follow(check_host(HostNeeds(5 * GB, 10**15), "mini", tmp_path, force=True), events)
    assert len([event for event in events if isinstance(event, Warning_)]) == 2
