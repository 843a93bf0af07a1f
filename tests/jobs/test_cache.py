"""toolkit.jobs.cache: what lies in the cache, its true size, and what may go while processes work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.builds import follow
from tests.support.bundles import FILES, make
from tests.support.locks import held_elsewhere
from toolkit.bundle.store import store_dir
from toolkit.config import cache_dir
from toolkit.errors import ConfigError
from toolkit.files import fresh_folder
from toolkit.jobs.cache import BUNDLE, Entry, Pruned, choose, list_cache, prune_cache

DAY_S = 86_400
KEY = "ab" * 32


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY_S
    os.utime(path, (then, then))


def write(path: Path, n_bytes: int = 100_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(n_bytes))
    return path


def names(entries: list[Entry]) -> set[str]:
    return {entry.path.name for entry in entries}


def prune(
    keep: int | None = None, older_than_s: float | None = None, kinds: tuple[str, ...] = (), *, dry_run: bool = False
) -> Pruned:
    return follow(prune_cache(choose(list_cache(), keep=keep, older_than_s=older_than_s, kinds=kinds), dry_run=dry_run))


@contextmanager
def holding(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has run `code` and lives until the end of the block, or until it is killed."""
    text = f"import sys, time\n{code}\nprint('held', flush=True)\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def bundles() -> list[Path]:
    """Three stored bundles; the first was used last."""
    made = []
    for days in range(3):
        bundle = make(store_dir() / "new", context_tokens=512 + days)
        made.append(bundle.path.rename(store_dir() / bundle.id))
        age(made[-1], days)
    return made


def test_sizes_are_those_of_the_disk_and_files_count_once(bundles: list[Path]) -> None:
    before = {entry.path: entry.disk_bytes for entry in list_cache()}
    large = max(bundles[0].iterdir(), key=lambda path: path.stat().st_size)
    os.link(large, bundles[1] / "linked")
    sparse = bundles[2] / "sparse"
    with sparse.open("wb") as file:
        file.truncate(50_000_000)
    after = {entry.path: entry.disk_bytes for entry in list_cache()}
    assert sum(after.values()) == sum(before.values())


def test_a_file_with_a_name_elsewhere_frees_nothing(bundles: list[Path], tmp_path: Path) -> None:
    everything = prune(keep=0, dry_run=True).freed_bytes
    large = max(bundles[0].iterdir(), key=lambda path: path.stat().st_size)
    os.link(large, tmp_path / "elsewhere")
    assert prune(keep=0, dry_run=True).freed_bytes == everything - large.stat().st_blocks * 512


def test_keep_and_age_choose_the_bundles(bundles: list[Path]) -> None:
    def chosen(keep: int | None, days: float | None) -> set[str]:
        found = choose(list_cache(), keep=keep, older_than_s=days and days * DAY_S)
        return {path.name for path in bundles} & names(found)

    first, second, third = (path.name for path in bundles)
    assert chosen(None, None) == set()
    assert chosen(0, None) == {first, second, third}
    assert chosen(2, None) == {third}
    assert chosen(None, 0.5) == {second, third}
    assert chosen(2, 0.5) == {third}
    assert chosen(0, 1.5) == {third}


def test_a_dry_run_removes_nothing(bundles: list[Path]) -> None:
    found = prune(keep=1, dry_run=True)
    assert len(found.removed) == 2 and found.freed_bytes > 0
    assert all(path.is_dir() for path in bundles)


def test_removing(bundles: list[Path]) -> None:
    found = prune(keep=1)
    assert names(found.removed) == {path.name for path in bundles[1:]}
    assert [path.name for path in store_dir().iterdir()] == [bundles[0].name]


def test_a_bundle_that_a_process_uses_stays_until_it_ends(bundles: list[Path]) -> None:
    uses = f"from toolkit.bundle import find_bundle\nbundle = find_bundle({bundles[2].name[:12]!r})"
    with holding(uses) as process:
        found = prune(keep=0)
        assert names(found.held) == {bundles[2].name}
        assert bundles[2].is_dir() and not bundles[1].exists()
        process.kill()
        process.wait()
        assert names(prune(keep=0).removed) == {bundles[2].name}


def test_using_a_bundle_is_its_last_use(bundles: list[Path]) -> None:
    with holding(f"from toolkit.bundle import find_bundle\nfind_bundle({bundles[2].name[:12]!r})"):
        pass
    assert bundles[2].name not in names(choose(list_cache(), keep=1, older_than_s=None))


def test_what_killed_processes_left_half_made_goes_and_what_is_being_made_stays() -> None:
    making = f"""\
from pathlib import Path
from toolkit.files import fresh_folder
room = fresh_folder(Path({str(cache_dir() / "builds" / KEY)!r}))
(room.__enter__() / "weights").write_bytes(bytes(200_000))
"""
    with holding(making) as process:
        (entry,) = list_cache()
        assert (entry.kind, entry.held) == ("half-made", True)
        assert entry.disk_bytes > 200_000
        assert prune().removed == []
        process.kill()
        process.wait()
        found = prune()
    assert [entry.name for entry in found.removed] == [f"builds/{KEY[:10]}"]
    assert found.freed_bytes > 200_000
    assert list((cache_dir() / "builds").iterdir()) == []


def test_the_folders_of_an_edgephi_without_locks_go_when_they_are_quiet() -> None:
    weights = write(cache_dir() / "builds" / f".{KEY}" / "deep" / "weights")
    for path in (weights.parents[1], weights.parent):
        age(path, 3)
    assert [entry.held for entry in list_cache()] == [True], "its file is new: a build may be at work"
    assert prune().removed == [] and weights.exists()
    age(weights, 3)
    assert [entry.name for entry in prune().removed] == [f"builds/{KEY[:10]}"]
    assert not weights.exists()


def test_a_pull_that_goes_on_and_one_that_does_not() -> None:
    folder = store_dir() / f".name-{KEY[:12]}.pull"
    write(folder / "config.json")
    part = write(folder.with_suffix(f".{KEY[:16]}.part"))
    lock = folder.with_suffix(".lock")
    with held_elsewhere(lock):
        assert [entry.held for entry in list_cache()] == [True, True]
        assert prune().removed == []
    assert len(prune().removed) == 2
    assert not folder.exists() and not part.exists() and not lock.exists()


def test_a_build_without_a_bundle_goes_by_age_unless_its_key_is_locked() -> None:
    folder = write(cache_dir() / "builds" / KEY / "model.onnx").parent
    age(folder, 3)
    assert prune(older_than_s=7 * DAY_S).removed == prune().removed == []
    with held_elsewhere(folder.with_name(f"{KEY}.lock")):
        assert names(prune(older_than_s=DAY_S).held) == {KEY}
    assert names(prune(older_than_s=DAY_S).removed) == {KEY}


def test_wheels_stay_while_a_process_sends_some() -> None:
    folder = write(cache_dir() / "wheels" / KEY / "numpy-2-cp311.whl").parent
    age(folder, 3)
    with holding(
        f"from pathlib import Path\nfrom toolkit.deploy.wheels import _hold\n_hold(Path({str(folder.parent)!r}))"
    ):
        assert names(prune(older_than_s=DAY_S).held) == {KEY}
    assert names(prune(older_than_s=DAY_S).removed) == {KEY}


def test_models_of_the_hubs_cache_go_only_when_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    hub = tmp_path / "hf" / "hub"
    for name, kind in (("microsoft--Phi-3", "phi3"), ("other--bert", "bert")):
        snapshot = hub / f"models--{name}" / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps({"model_type": kind}))
        for path in (snapshot, snapshot.parent, snapshot.parents[1]):
            age(path, 3)
    (entry,) = list_cache()
    assert (entry.kind, entry.name) == ("model", "microsoft/Phi-3")
    assert prune(older_than_s=DAY_S).removed == []
    assert len(prune(older_than_s=DAY_S, kinds=("model",)).removed) == 1
    assert [path.name for path in hub.iterdir()] == ["models--other--bert"]


def test_an_earlier_edgephis_build_gives_up_its_second_names(bundles: list[Path]) -> None:
    build = cache_dir() / "builds" / KEY
    manifest = json.loads((bundles[0] / "manifest.json").read_bytes())
    for name in FILES:
        (build / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(bundles[0] / name, build / name)
    (build / "build.json").write_text(json.dumps(manifest["artifacts"]))
    prune()
    assert [(bundles[0] / name).stat().st_nlink for name in FILES] == [1, 1, 1]
    assert [path.name for path in build.iterdir() if path.is_file()] == ["build.json"]


def test_a_folder_that_cannot_be_moved_is_told_of_in_words(
    bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ConfigError, match=rf"{bundles[2].name}: cannot be written: Permission denied"):
        prune(keep=2)
    assert bundles[2].is_dir()


def test_an_empty_cache() -> None:
    assert list_cache() == []
    assert prune(keep=0) == Pruned([], 0, [])


def test_bundles_are_a_kind(bundles: list[Path]) -> None:
    assert {entry.kind for entry in list_cache()} == {BUNDLE}
    with fresh_folder(bundles[0]):
        assert len(list_cache()) == 4
