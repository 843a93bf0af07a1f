"""Locked wheels: the index still has the shipped ones, and no other file passes for one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import wheels as made
from tests.support.builds import follow
from tests.support.fleets import processes_naming
from toolkit.deploy import wheels
from toolkit.deploy.wheels import Platform, WheelLock, fetch_locked, find_lock, resolve
from toolkit.errors import ConfigError
from toolkit.events import Progress

TAGS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
PI = Platform("3.11", "linux", "aarch64", TAGS)
PACKAGES = ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0")


def lock_of(*paths: Path, pip: Path) -> WheelLock:
    packages = tuple(f"{wheel.name}=={wheel.version}" for wheel in map(made.locked, paths))
    return WheelLock(
        packages=packages,
        python="3.11",
        os="linux",
        arch="aarch64",
        wheels=tuple(map(made.locked, paths)),
        pip=made.locked(pip),
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    made.index_is(folder, monkeypatch)
    return folder


@pytest.fixture
def small(index: Path) -> WheelLock:
    """A lock of two wheels and a pip in `index`."""
    return lock_of(
        made.make_wheel(index, "runner", "1.0"),
        made.make_wheel(index, "arrays", "2.0"),
        pip=made.make_wheel(index, "pip", "26.0"),
    )


def test_the_index_has_the_wheels_that_are_locked_for_a_raspberry_pi() -> None:
    lock = find_lock(PACKAGES, PI)
    assert lock is not None
    # Two threads at once, as devices of a rollout do.
    with ThreadPoolExecutor(2) as pool:
        found, same = pool.map(lambda _: follow(fetch_locked(lock, PI)), range(2))
    assert found == same
    assert [path.name for path in found] == [wheel.file for wheel in (*lock.wheels, lock.pip)]
    names = [path.name for path in found]
    assert any(name.startswith("onnxruntime_genai-0.18.0-cp311") and "aarch64" in name for name in names)
    assert not [name for name in names if "x86_64" in name]
    assert [path.parent.name for path in found] == [wheel.sha256 for wheel in (*lock.wheels, lock.pip)]


def test_cached_wheels_ask_no_index(small: WheelLock, index: Path) -> None:
    first = follow(fetch_locked(small, PI))
    for path in index.iterdir():
        path.unlink()
    assert follow(fetch_locked(small, PI)) == first


def test_a_wheel_that_was_damaged_in_the_cache_is_fetched_again(small: WheelLock) -> None:
    path = follow(fetch_locked(small, PI))[0]
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    assert follow(fetch_locked(small, PI))[0].read_bytes() == good


def test_locks_share_the_wheels_that_they_have_in_common(small: WheelLock, index: Path) -> None:
    follow(fetch_locked(small, PI))
    (index / small.wheels[0].file).unlink()
    more = made.locked(made.make_wheel(index, "logits", "1.0"))
    larger = small.model_copy(update={"wheels": (small.wheels[0], more)})
    assert [path.name for path in follow(fetch_locked(larger, PI))][:2] == [small.wheels[0].file, more.file]


def test_another_file_under_a_locked_name_is_refused(small: WheelLock, index: Path, tmp_path: Path) -> None:
    made.make_wheel(index, "runner", "1.0", "import os")
    with pytest.raises(ConfigError, match=r"the index's runner==1\.0 isn't the locked file"):
        follow(fetch_locked(small, PI))
    assert [path.name for path in (tmp_path / "cache" / "wheels").iterdir()] == [".lock"]


def test_what_a_killed_download_left_is_not_taken_for_whole(small: WheelLock, tmp_path: Path) -> None:
    room = tmp_path / "cache" / "wheels" / ".download-0123abcd.part"
    torn = room / "new" / small.wheels[0].file
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"torn")
    (room / "lock").touch()
    assert all(wheels.sha256_of(path) == path.parent.name for path in follow(fetch_locked(small, PI)))
    assert not room.exists()


def test_a_download_ends_with_its_listener(small: WheelLock, tmp_path: Path) -> None:
    service = fetch_locked(small, PI)
    assert next(service) == Progress("fetch wheels", 0, None)
    service.close()
    assert not processes_naming(tmp_path)


def test_what_no_lock_covers_is_resolved_by_name_and_version(index: Path) -> None:
    made.make_wheel(index, "runner", "1.0", requires=["arrays>=2"])
    made.make_wheel(index, "arrays", "2.5")
    made.make_wheel(index, "pip", "26.0")
    found = [path.name for path in follow(resolve(["runner==1.0"], PI, "custom", None))]
    assert found == ["arrays-2.5-py3-none-any.whl", "pip-26.0-py3-none-any.whl", "runner-1.0-py3-none-any.whl"]


def test_wheels_of_a_folder_come_before_the_index_and_new_ones_are_seen(index: Path, tmp_path: Path) -> None:
    made.make_wheel(index, "pip", "26.0")
    ours = tmp_path / "ours"
    made.make_wheel(ours, "runner", "1.0", "version = 'first'")
    first = follow(resolve(["runner==1.0"], PI, "custom", ours))[-1]
    made.make_wheel(ours, "runner", "1.0", "version = 'second one'")
    second = follow(resolve(["runner==1.0"], PI, "custom", ours))[-1]
    assert first.name == second.name
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.usefixtures("index")
def test_a_version_that_no_index_has_is_refused_with_pips_words() -> None:
    with pytest.raises(ConfigError, match=r"no wheels of runner==0\.0\.1 for linux aarch64, Python 3\.11: ") as error:
        follow(resolve(["runner==0.0.1"], PI, "custom", None))
    assert error.value.hint == "put the missing wheels into a folder and give it with --wheels"


@pytest.mark.parametrize(
    ("packages", "platform"),
    [
        (("onnxruntime-genai==0.17.0", "onnxruntime==1.32.0"), PI),
        ((*PACKAGES, "onnxruntime-qnn==2.7.0"), PI),
        (PACKAGES, Platform("3.10", "linux", "aarch64", TAGS)),
        (PACKAGES, Platform("3.11", "darwin", "aarch64", ("macosx_14_0_arm64",))),
        # An older C library than the locked wheels need.
        (PACKAGES, Platform("3.11", "linux", "aarch64", TAGS[2:])),
    ],
)
def test_other_packages_and_platforms_are_not_covered(packages: tuple[str, ...], platform: Platform) -> None:
    assert find_lock(packages, platform) is None


def test_a_locks_identity_follows_from_its_files(small: WheelLock) -> None:
    other = small.wheels[0].model_copy(update={"sha256": "0" * 64})
    assert small.identity != small.model_copy(update={"wheels": (other, *small.wheels[1:])}).identity
    assert small.identity == small.model_copy(update={"wheels": small.wheels[::-1]}).identity
    # The lock's pip isn't installed, so it isn't part of the identity.
    assert small.identity == small.model_copy(update={"pip": other}).identity


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (("runner-1.0-py3-none-any.whl", "../runner.whl"), "wheels.0.file"),
        (('"lock_version":1', '"lock_version":2'), "lock_version"),
    ],
)
def test_a_file_that_is_no_lock_is_refused(
    small: WheelLock, change: tuple[str, str], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / wheels.lock_name("odd", PI)).write_text(small.model_dump_json().replace(*change))
    monkeypatch.setattr(wheels, "LOCKS", tmp_path)
    with pytest.raises(ConfigError, match=rf"odd-linux-aarch64-cp311\.json: {where}: "):
        find_lock(PACKAGES, PI)
