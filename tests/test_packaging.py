"""What is promised about installing: pins agree, a wheel carries its data, versions are the ones that were
seen to work.
"""

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

REPO = Path(__file__).parents[1]
PIN = re.compile(r"^([a-z0-9-]+)==(\S+)$", re.MULTILINE)


def constraints() -> dict[str, str]:
    return dict(PIN.findall((REPO / "constraints.txt").read_text()))


def test_the_extra_and_the_constraints_file_name_the_same_versions() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    exact = dict(match for text in project["optional-dependencies"]["optimize"] for match in PIN.findall(text))
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
    assert "toolkit/agent/agent.py" in names


def test_an_installed_wheel_finds_its_profiles_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    # The environment sees this one's libraries but not the checkout: what runs is the wheel.
    venv.create(tmp_path / "env", with_pip=False, system_site_packages=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", str(wheel)], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [str(tmp_path / "env" / "bin" / "edgephi"), "profiles", "list"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "raspberry-pi-5-8gb" in done.stdout
