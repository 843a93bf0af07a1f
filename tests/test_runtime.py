"""Runtimes: which pins, and how they come to a device that has no index."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.builds import follow
from tests.fleets import processes_naming
from tests.test_deploy import target_at
from toolkit.deploy import Delivery, prepare
from toolkit.device import connect
from toolkit.errors import AgentError, ConfigError
from toolkit.events import Event, Progress, Step
from toolkit.profiles import load_profile
from toolkit.runtime import Runtime, describe, resolve_wheels

PI5 = load_profile("raspberry-pi-5-8gb")
PROBE = {"python": "3.11.2", "arch": "aarch64", "os": "linux"}


def test_the_lock_follows_pins_python_and_platform(tmp_path: Path) -> None:
    target = target_at(tmp_path)
    lock = describe(target, PI5, PROBE).lock
    assert lock == describe(target, PI5, PROBE | {"python": "3.11.9"}).lock
    assert lock != describe(target, PI5, PROBE | {"python": "3.12.1"}).lock
    assert lock != describe(target, PI5, PROBE | {"arch": "x86_64"}).lock


def test_a_python_that_the_wheels_do_not_support_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        describe(target_at(tmp_path), PI5, PROBE | {"python": "3.9.2"})
    assert error.value.message == "here: 'python3' is Python 3.9.2, the runtime needs >=3.11,<3.15"
    assert "`python`" in (error.value.hint or "")


def test_wheels_of_a_raspberry_pi_are_resolved_on_this_machine(tmp_path: Path) -> None:
    runtime = describe(target_at(tmp_path), PI5, PROBE)
    # Two at once, as devices of a rollout ask.
    with ThreadPoolExecutor(2) as pool:
        wheels, same = pool.map(lambda _: follow(resolve_wheels(runtime, None)), range(2))
    assert wheels == same
    names = [wheel.name for wheel in wheels]
    assert any(name.startswith("onnxruntime_genai-0.18.0-cp311") and "aarch64" in name for name in names)
    assert any(name.startswith("onnxruntime-1.32.0-cp311") and "aarch64" in name for name in names)
    assert any(name.startswith("pip-") for name in names)
    assert not [name for name in names if "x86_64" in name]
    stamps = [wheel.stat().st_mtime_ns for wheel in wheels]
    again = follow(resolve_wheels(runtime, None))
    assert [wheel.stat().st_mtime_ns for wheel in again] == stamps


def test_a_version_that_no_index_has_is_refused_with_pips_words() -> None:
    runtime = Runtime("0" * 16, ("onnxruntime-genai==0.0.1",), "3.11", ("manylinux_2_28_aarch64",))
    with pytest.raises(ConfigError, match=r"no wheels of onnxruntime-genai==0\.0\.1 for Python 3\.11") as error:
        follow(resolve_wheels(runtime, None))
    assert error.value.hint == "put the missing wheels into a folder and give it with --wheels"


def test_a_download_ends_with_its_listener(tmp_path: Path) -> None:
    service = resolve_wheels(describe(target_at(tmp_path), PI5, PROBE), None)
    assert next(service) == Progress("resolve wheels", 0, None)
    service.close()
    assert not processes_naming(tmp_path)


def test_an_interrupted_download_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    runtime = describe(target_at(tmp_path), PI5, PROBE)
    leftover = tmp_path / "cache" / "wheels" / f".{runtime.lock}.part"
    leftover.mkdir(parents=True)
    (leftover / "torn-1.0-py3-none-any.whl").write_bytes(b"")
    assert "torn-1.0-py3-none-any.whl" not in [wheel.name for wheel in follow(resolve_wheels(runtime, None))]


def test_offline_provisioning_needs_no_index(tmp_path: Path) -> None:
    # The device's pip finds no index; this machine still resolves.
    root = tmp_path / "device"
    bare = tmp_path / "bare-python"
    bare.write_text(
        f'#!/bin/sh\nexport PIP_INDEX_URL=http://127.0.0.1:9/ PIP_CONFIG_FILE=/dev/null\nexec {sys.executable} "$@"\n'
    )
    bare.chmod(0o755)
    target = target_at(root).model_copy(update={"python": str(bare)})
    with connect(target) as device:
        with pytest.raises(AgentError, match="installing the runtime failed") as error:
            follow(prepare(device))
        assert error.value.hint == "no package index there? deploy with --offline"
        events: list[Event] = []
        _, runtime = follow(prepare(device, Delivery(offline=True)), events)
    assert "onnxruntime_genai==0.18.0" in [package.replace("-", "_") for package in runtime.installed]
    assert "pip" not in [package.partition("==")[0] for package in runtime.installed]
    assert any("push" in event.text for event in events if isinstance(event, Step))
    assert not list((root / "incoming").iterdir())


def test_a_half_made_runtime_is_made_again(root: Path, runtimes: Path) -> None:
    lock = next(runtimes.iterdir()).name
    (root / "runtimes").unlink()
    torn = root / "runtimes" / lock
    (torn / "venv" / "bin").mkdir(parents=True)
    (torn / "venv" / "bin" / "python").write_text("torn")
    with connect(target_at(root)) as device:
        _, runtime = follow(prepare(device, Delivery(offline=True)))
    assert runtime.lock == lock
    done = subprocess.run(
        [str(torn / "venv" / "bin" / "python"), "-c", "import onnxruntime_genai"], capture_output=True
    )
    assert done.returncode == 0
