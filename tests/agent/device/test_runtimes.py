"""Runtimes where the device's user has settings of pip and Python of their own, which mustn't reach ours."""

from __future__ import annotations

import ensurepip
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.requests import LOCK, ask
from tests.support.wheels import make_wheel

PACKAGE = "onnxruntime-genai==0.99.0"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels: a runtime of one module, and pip. This machine's variables of pip are taken away."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "wheels"
    make_wheel(folder, "onnxruntime-genai", "0.99.0", "import sys\nsys.stderr.write('ours')\n")
    bundled = Path(ensurepip.__file__).parent / "_bundled"
    if not any(bundled.glob("pip-*.whl")):
        bundled = Path("/usr/share/python-wheels")
    shutil.copy(next(bundled.glob("pip-*.whl")), folder)
    return folder


def pip_settings(home: Path, wheels: Path, *lines: str) -> None:
    """Give the user settings of pip, with that folder for an index."""
    folder = home / ".config" / "pip"
    folder.mkdir(parents=True)
    index = ("no-index = true", f"find-links = {wheels}")
    (folder / "pip.conf").write_text("\n".join(("[global]", *index, *lines, "")))


def provision(root: Path, wheels: Path, *, pushed: bool) -> dict[str, Any]:
    if not pushed:
        return ask(root, "provision", lock=LOCK, packages=[PACKAGE], smallest=PACKAGE)
    sent = []
    (root / "incoming").mkdir()
    for wheel in wheels.glob("*.whl"):
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        shutil.copy(wheel, root / "incoming" / f"{sha256}.part")
        sent.append({"name": wheel.name, "sha256": sha256})
    return ask(root, "provision", lock=LOCK, packages=[PACKAGE], wheels=sent)


def installed(root: Path, answer: dict[str, Any]) -> None:
    """Assert that the runtime lies in its own folder, and imports without any settings."""
    assert answer.get("result", answer)["installed"] is True, answer
    assert "onnxruntime_genai==0.99.0" in [name.replace("-", "_") for name in answer["result"]["packages"]]
    python = root / "runtimes" / LOCK / "venv" / "bin" / "python"
    code = "import onnxruntime_genai as og; print(og.__file__)"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(root / "runtimes" / LOCK))


@pytest.mark.parametrize("pushed", [False, True], ids=["index", "pushed"])
@pytest.mark.parametrize("line", ["user = true", "target = elsewhere", "require-virtualenv = true\nprefix = elsewhere"])
def test_settings_of_pip(root: Path, tmp_path: Path, wheels: Path, line: str, pushed: bool) -> None:
    pip_settings(tmp_path / "home", wheels, line)
    installed(root, provision(root, wheels, pushed=pushed))
    assert not list(tmp_path.rglob("elsewhere"))


def test_variables_of_pip(root: Path, tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_settings(tmp_path / "home", wheels)
    for name, value in {"PIP_TARGET": str(tmp_path / "elsewhere"), "PIP_NO_BINARY": ":all:", "PIP_PRE": "1"}.items():
        monkeypatch.setenv(name, value)
    installed(root, provision(root, wheels, pushed=False))
    assert not (tmp_path / "elsewhere").exists()


def test_pythons_own_variables(root: Path, tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    for module in ("onnxruntime_genai", "onnxruntime", "numpy"):
        (evil / f"{module}.py").write_text("raise SystemExit('the wrong module')")
    # The agent's own Python may read it; no Python of a runtime may.
    (evil / "sitecustomize.py").write_text("import os, sys\nif 'runtimes' in sys.executable: os._exit(9)\n")
    monkeypatch.setenv("PYTHONPATH", str(evil))
    monkeypatch.setenv("PYTHONHOME", sys.base_prefix)
    monkeypatch.setenv("PYTHONINSPECT", "1")
    installed(root, provision(root, wheels, pushed=True))
