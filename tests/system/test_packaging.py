"""The promises about installing: pins agree, a wheel carries its data, and versions are the tested ones."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.paths import REPO

PIN = re.compile(r"^([a-z0-9-]+)==(\S+)$", re.MULTILINE)


def constraints() -> dict[str, str]:
    return dict(PIN.findall((REPO / "constraints.txt").read_text()))


def test_the_extra_and_the_constraints_file_name_the_same_versions() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    exact = dict(match for name in ("optimize", "lm-eval") for text in extras[name] for match in PIN.findall(text))
    assert exact
    assert exact.items() <= constraints().items()


@pytest.mark.parametrize("name", sorted(constraints()))
def test_what_is_installed_is_what_is_pinned(name: str) -> None:
    assert metadata.version(name).split("+")[0] == constraints()[name]


def test_all_profiles_pin_one_version_of_a_package() -> None:
    pins: dict[str, set[str]] = {}
    for path in (REPO / "profiles").glob("*.toml"):
        for package in tomllib.loads(path.read_text()).get("runtime", {}).get("packages", []):
            name, _, version = package.partition("==")
            pins.setdefault(name, set()).add(version)
    assert {name for name, versions in pins.items() if len(versions) > 1} == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(REPO)],
        check=True,
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_profiles_workloads_recipes_and_the_reference_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "toolkit/_shipped/profiles/raspberry-pi-5-8gb.toml" in names
    assert "toolkit/_shipped/targets/local.toml" in names
    assert "toolkit/_shipped/workloads/default.toml" in names
    assert "toolkit/data/recipes/int4-rtn-b32.toml" in names
    assert "toolkit/data/phi3-nano/model.safetensors" in names
    assert "toolkit/data/heldout.txt" in names
    assert {"toolkit/data/boards/raspberry-pi-5.toml", "toolkit/data/board.sh"} <= names
    assert "toolkit/data/wheels/cpu-linux-aarch64-cp311.json" in names
    assert "toolkit/agent/device/main.py" in names
    assert {"toolkit/data/presets/phi-3-mini-4k.json", "toolkit/data/matmul_int4.onnx"} <= names


def test_the_wheel_carries_every_file_of_the_package_and_none_of_tests_or_maintainers(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"toolkit"}
    files = [path for path in (REPO / "toolkit").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {name for name in names if "/_shipped/" not in name} == {p.relative_to(REPO).as_posix() for p in files}
    # Imports of test frameworks reveal code that only tests or maintainers need.
    sources = {name: zipfile.ZipFile(wheel).read(name).decode() for name in names if name.endswith(".py")}
    foreign = re.compile(r"^\s*(?:import|from) (?:pytest|tests|maintenance)\b", re.MULTILINE)
    assert [name for name, text in sources.items() if foreign.search(text)] == []
    assert [name for name in names if "test_" in name or "conftest" in name] == []


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a fresh environment that has the wheel and its core dependencies, and no extra."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, str(wheel)], check=True)
    return folder / "bin" / "edgephi"


def test_an_installed_wheel_finds_its_profiles_from_any_folder(installed: Path, isolated: Path) -> None:
    done = subprocess.run([installed, "profiles", "list"], cwd=isolated, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "raspberry-pi-5-8gb" in done.stdout


def test_an_installed_wheel_finds_its_presets(installed: Path, isolated: Path) -> None:
    done = subprocess.run([installed, "models", "list"], cwd=isolated, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "microsoft/Phi-4-mini-instruct" in done.stdout


def test_quantizing_without_the_extra_says_how_to_get_it(installed: Path, isolated: Path) -> None:
    done = subprocess.run(
        [installed, "optimize", "phi3-nano", "--profile", "local"], cwd=isolated, capture_output=True, text=True
    )
    assert done.returncode == 4
    assert "error: optimizing needs the 'optimize' extra" in done.stderr
    assert "pip install 'edgephi[optimize]'" in done.stderr
    assert "Traceback" not in done.stderr
