"""Runtimes: their packages, their files, and their names on a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.boards import pi5_facts
from tests.support.builds import follow
from tests.support.devices import target_at
from tests.support.wheels import index_is, make_wheel
from toolkit.catalog import load_profile
from toolkit.deploy import wheels
from toolkit.deploy.runtime import describe, fetch_wheels
from toolkit.errors import ConfigError

PI5 = load_profile("raspberry-pi-5-8gb")
PROBE = pi5_facts(python="3.11.2")


def test_the_lock_follows_pins_python_and_platform(tmp_path: Path) -> None:
    target = target_at(tmp_path)
    lock = describe(target, PI5, PROBE).lock
    assert lock == describe(target, PI5, pi5_facts(python="3.11.9")).lock
    assert lock != describe(target, PI5, pi5_facts(python="3.12.1")).lock
    assert lock != describe(target, load_profile("laptop-cpu-x86"), pi5_facts(arch="x86_64")).lock


def test_the_lock_follows_the_locked_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = describe(target_at(tmp_path), PI5, PROBE)
    assert runtime.wheels is not None
    other = runtime.wheels.wheels[0].model_copy(update={"sha256": "0" * 64})
    changed = runtime.wheels.model_copy(update={"wheels": (other, *runtime.wheels.wheels[1:])})
    (tmp_path / "cpu-linux-aarch64-cp311.json").write_text(changed.model_dump_json())
    monkeypatch.setattr(wheels, "LOCKS", tmp_path)
    assert describe(target_at(tmp_path), PI5, PROBE).lock != runtime.lock


def test_packages_of_ones_own_have_no_locked_files(tmp_path: Path) -> None:
    own = PI5.runtime.model_copy(update={"packages": ("onnxruntime-genai==0.18.0", "onnxruntime==1.31.0")})
    runtime = describe(target_at(tmp_path), PI5.model_copy(update={"runtime": own}), PROBE)
    assert runtime.wheels is None
    assert runtime.lock != describe(target_at(tmp_path), PI5, PROBE).lock


def test_a_folder_of_wheels_comes_before_the_locked_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index_is(tmp_path, monkeypatch)
    for name, version in (("onnxruntime-genai", "0.18.0"), ("onnxruntime", "1.32.0"), ("pip", "26.0")):
        make_wheel(tmp_path / "ours", name, version)
    found = follow(fetch_wheels(describe(target_at(tmp_path), PI5, PROBE), tmp_path / "ours"))
    assert [path.name.partition("-")[0] for path in found] == ["onnxruntime", "onnxruntime_genai", "pip"]


def test_a_python_that_the_wheels_do_not_support_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        describe(target_at(tmp_path), PI5, pi5_facts(python="3.9.2"))
    assert error.value.message == "here: 'python3' is Python 3.9.2, the runtime needs >=3.11,<3.15"
    assert (error.value.hint or "").startswith("on the device: ")
