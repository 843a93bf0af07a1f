"""Making locks; the shipped locks are those that the shipped profiles need."""

from __future__ import annotations

from pathlib import Path

import pytest

from maintenance.lock_wheels import Unresolved, make_lock, wanted_locks
from tests.support import wheels as made
from toolkit.catalog import Profile
from toolkit.catalog.profile import list_profiles
from toolkit.deploy.wheels import LOCKS, Platform, find_lock, lock_name, read_lock

ARM_WINDOWS = Platform("3.12", "windows", "aarch64", ("win_arm64",))


def shipped_profiles() -> list[Profile]:
    return [profile for profile in list_profiles() if isinstance(profile, Profile)]


def test_every_runtime_of_a_shipped_profile_is_locked() -> None:
    wanted = list(wanted_locks(shipped_profiles()))
    missing = {name for name, packages, platform, _ in wanted if find_lock(packages, platform) is None}
    # The packages for CUDA don't come from the index.
    assert missing == {"cuda"}
    names = {lock_name(name, platform) for name, _, platform, _ in wanted if name not in missing}
    assert {path.name for path in LOCKS.iterdir()} == names


def test_locks_pin_what_their_profiles_pin() -> None:
    for path in LOCKS.iterdir():
        lock = read_lock(path)
        pins = {f"{wheel.name}=={wheel.version}" for wheel in lock.wheels}
        assert set(lock.packages) <= pins
        assert lock.pip.name == "pip"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    made.index_is(folder, monkeypatch)
    made.make_wheel(folder, "pip", "26.0")
    return folder


def test_a_lock_holds_all_that_the_packages_need(index: Path) -> None:
    runner = made.make_wheel(index, "runner", "1.0", requires=["arrays>=2", 'tests; extra == "test"'])
    arrays = made.make_wheel(index, "arrays", "2.5")
    lock = make_lock(("runner==1.0",), ARM_WINDOWS)
    assert lock.wheels == (made.locked(arrays), made.locked(runner))
    assert (lock.packages, lock.python, lock.os, lock.arch) == (("runner==1.0",), "3.12", "windows", "aarch64")
    assert lock.pip.version == "26.0"


def test_conditions_are_read_for_the_target_and_not_for_this_machine(index: Path) -> None:
    made.make_wheel(index, "runner", "1.0", requires=['console>=3; sys_platform == "win32"'])
    made.make_wheel(index, "console", "3.5", requires=['keys; platform_machine == "ARM64"'])
    made.make_wheel(index, "keys", "1.0")
    assert [wheel.name for wheel in make_lock(("runner==1.0",), ARM_WINDOWS).wheels] == ["console", "keys", "runner"]


def test_what_the_index_lacks_cannot_be_locked(index: Path) -> None:
    made.make_wheel(index, "runner", "1.0", requires=["arrays"])
    with pytest.raises(Unresolved, match="arrays"):
        make_lock(("runner==1.0",), ARM_WINDOWS)
