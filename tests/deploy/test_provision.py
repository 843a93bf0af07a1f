"""Runtimes on devices: the Python, the source of the wheels, and wheels that don't work there."""

from __future__ import annotations

import ensurepip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, follow
from tests.support.devices import pointer, steps, target_at
from tests.support.pythons import calling_itself, real_python, script, without_index
from tests.support.wheels import make_wheel
from toolkit.agent.requests import TakeProbe
from toolkit.catalog import Target, load_profile
from toolkit.catalog.python import suits
from toolkit.config import config_dir
from toolkit.deploy import Delivery, deploy, prepare
from toolkit.deploy.install import check_active
from toolkit.deploy.provision import suitable_probe
from toolkit.deploy.releases import prune
from toolkit.deploy.runtime import describe
from toolkit.deploy.wheels import find_lock
from toolkit.device import connect
from toolkit.errors import AgentError, ConfigError, NoIndex, NoPython
from toolkit.events import Event

WANTED = load_profile("local").runtime.python


def own_runtime(module: str, tmp_path: Path, root: Path) -> tuple[Target, Delivery]:
    """A target with a profile whose runtime is a wheel with `module` in it, and the delivery of that wheel."""
    folder = tmp_path / "own-wheels"
    make_wheel(folder, "onnxruntime-genai", "0.99.0", module)
    bundled = Path(ensurepip.__file__).parent / "_bundled"
    if not any(bundled.glob("pip-*.whl")):
        bundled = Path("/usr/share/python-wheels")
    shutil.copy(next(bundled.glob("pip-*.whl")), folder)
    profiles = config_dir() / "profiles"
    profiles.mkdir(parents=True, exist_ok=True)
    table = 'schema_version = 1\nextends = "local"\n[runtime]\npackages = ["onnxruntime-genai==0.99.0"]\n'
    (profiles / "own.toml").write_text(table)
    return target_at(root).model_copy(update={"profile": "own"}), Delivery(wheels=folder)


def runtime_of_its_own(root: Path, runtimes: Path) -> str:
    """Install the session's runtime into a root in such a way that it may be removed there; returns its name."""
    (real,) = runtimes.iterdir()
    folder = root / "runtimes" / real.name
    script(folder / "venv" / "bin" / "python", f'exec {real / "venv" / "bin" / "python"} "$@"')
    shutil.copy(real / "ready.json", folder)
    return real.name


def test_the_runtime_is_the_locked_one(root: Path, runtimes: Path) -> None:
    with connect(target_at(root)) as device:
        runtime = follow(prepare(device)).runtime
    lock = find_lock(runtime.packages, runtime.platform)
    assert lock is not None
    assert [path.name for path in runtimes.iterdir()] == [lock.identity]
    installed = {name.replace("_", "-") for name in runtime.installed}
    assert {f"{wheel.name}=={wheel.version}" for wheel in lock.wheels} <= installed
    assert {name.partition("==")[0] for name in installed} <= {w.name for w in lock.wheels} | {"pip", "setuptools"}


def test_a_device_without_an_index_gets_its_wheels_from_here(tmp_path: Path, runtimes: Path) -> None:
    """The remains of an interrupted installation aren't taken for a runtime."""
    root = tmp_path / "device"
    torn = root / "runtimes" / next(runtimes.iterdir()).name
    (torn / "venv" / "bin").mkdir(parents=True)
    (torn / "venv" / "bin" / "python").write_text("torn")
    target = target_at(root).model_copy(update={"python": str(without_index(tmp_path))})
    events: list[Event] = []
    with connect(target) as device:
        runtime = follow(prepare(device), events).runtime
    assert runtime.lock == torn.name
    (why,) = [step for step in steps(events) if step.endswith("its wheels are pushed from here")]
    assert why.startswith("here: the device has no package index that gives flatbuffers==")
    assert "onnxruntime-genai==0.18.0" in [package.replace("_", "-") for package in runtime.installed]
    assert "pip" not in [package.partition("==")[0] for package in runtime.installed]
    assert not list((root / "incoming").iterdir())
    done = subprocess.run([torn / "venv" / "bin" / "python", "-c", "import onnxruntime_genai"], capture_output=True)
    assert done.returncode == 0


def test_another_file_on_the_devices_index_is_not_installed(tmp_path: Path) -> None:
    index = tmp_path / "index"
    with connect(target_at(tmp_path / "asked")) as device:
        lock = describe(device.target, device.profile, device.ask(TakeProbe())).wheels
    assert lock is not None
    for wheel in lock.wheels:
        make_wheel(index, wheel.name, wheel.version)
    python = script(tmp_path / "python", f"export PIP_NO_INDEX=1 PIP_FIND_LINKS={index}", f'exec {sys.executable} "$@"')
    target = target_at(tmp_path / "device").model_copy(update={"python": str(python)})
    with connect(target) as device, pytest.raises(NoIndex, match="HASH"):
        follow(prepare(device, Delivery(offline=False)))


BREAKS = {
    "import os, signal\nos.kill(os.getpid(), signal.SIGILL)": (
        "the runtime is installed but doesn't import on this device: killed by SIGILL",
        "this CPU lacks an instruction that the runtime's wheel uses",
    ),
    'raise ImportError("/lib/libc.so.6: version `GLIBC_2.99\' not found (required by /x.so)")': (
        "the runtime's wheels need glibc 2.99, which this device hasn't got; it has glibc 2.",
        "install a newer system there: Debian 12, Ubuntu 24.04 or later",
    ),
}


def test_the_old_runtime_stays_until_the_new_one_has_generated(tmp_path: Path, runtimes: Path) -> None:
    root, bundle = tmp_path / "device", build("int4-rtn-b32")
    old = runtime_of_its_own(root, runtimes)
    with connect(target_at(root)) as device:
        follow(deploy(bundle, device))
    before = pointer(root)
    assert before["runtime"] == old

    for module, (message, hint) in BREAKS.items():
        target, delivery = own_runtime(module, tmp_path, root)
        with connect(target) as device, pytest.raises(AgentError) as error:
            follow(deploy(bundle, device, delivery))
        assert message in error.value.message
        assert error.value.hint == hint
        assert [path.name for path in (root / "runtimes").iterdir()] == [old]

    # A runtime that can be imported and then can't generate.
    target, delivery = own_runtime("", tmp_path, root)
    with connect(target) as device, pytest.raises(AgentError, match="can't load this bundle"):
        follow(deploy(bundle, device, delivery))
    assert pointer(root) == before
    new = {path.name for path in (root / "runtimes").iterdir()} - {old}
    assert len(new) == 1
    for path in (root / "runtimes").iterdir():
        os.utime(path, (0, 0))
    with connect(target_at(root)) as device:
        follow(prune(device, keep=0))
        assert [path.name for path in (root / "runtimes").iterdir()] == [old]
        follow(check_active(device))


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first in the device's PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_another_python_is_taken_where_the_default_does_not_suit(commands: Path, tmp_path: Path) -> None:
    calling_itself("3.9.2", commands / "python3")
    real_python(commands / "python3.12")
    events: list[Event] = []
    with connect(target_at(tmp_path / "device")) as device:
        assert device.ask(TakeProbe()).python == "3.9.2"
        probe = follow(suitable_probe(device), events)
        assert device.ask(TakeProbe()).python == probe.python
    assert suits(probe.python, WANTED)
    (taken,) = [step for step in steps(events) if step.endswith("is taken")]
    assert taken.startswith(f"here: 'python3' is Python 3.9.2, the runtime needs {WANTED}: /")
    assert f"({probe.python})" in taken


def test_a_python_that_somebody_named_is_not_replaced(commands: Path, tmp_path: Path) -> None:
    named = calling_itself("3.9.2", tmp_path / "named")
    real_python(commands / "python3")
    target = target_at(tmp_path / "device").model_copy(update={"python": str(named)})
    with connect(target) as device, pytest.raises(ConfigError) as error:
        follow(suitable_probe(device))
    assert error.value.message == f"here: '{named}' is Python 3.9.2, the runtime needs {WANTED}"
    assert error.value.hint is not None
    assert error.value.hint.startswith("there is a Python 3.") and 'python = "/' in error.value.hint


def test_where_no_python_suits_it_says_what_to_type(tmp_path: Path) -> None:
    (config_dir() / "profiles").mkdir(parents=True)
    table = 'schema_version = 1\nextends = "local"\n[runtime]\npython = ">=3.99"\n'
    (config_dir() / "profiles" / "future.toml").write_text(table)
    target = target_at(tmp_path / "device").model_copy(update={"profile": "future"})
    with connect(target) as device, pytest.raises(ConfigError, match=r"the runtime needs >=3\.99") as error:
        follow(suitable_probe(device))
    assert error.value.hint is not None and "in the profile" in error.value.hint


def test_a_missing_default_is_replaced_by_another_command(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_python(commands / "python3.12")
    script(commands / "python3.13", "exit 1")
    monkeypatch.setenv("PATH", str(commands))
    events: list[Event] = []
    with connect(target_at(tmp_path / "device")) as device:
        probe = follow(device.call(TakeProbe()), events)
        assert device.agent.python == "python3.12"
    assert probe.arch
    assert any(step.endswith("'python3.12' is taken instead") for step in steps(events))


def test_no_python_at_all(commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(commands))
    with connect(target_at(tmp_path / "device")) as device, pytest.raises(NoPython) as error:
        device.ask(TakeProbe())
    assert error.value.hint is not None and error.value.hint.startswith("is there a Python at 'python3'?")
