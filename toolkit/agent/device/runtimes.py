"""The virtual environments that execute bundles."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from .layout import INCOMING, LOCK_NAME, RUNTIMES, sha256_file, write_durably
from .locks import held
from .protocol import HEX64, AgentFailure, death_hint, progress

WHEEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+!-]*\.whl\Z")


def op_provision(request: dict[str, Any]) -> dict[str, Any]:
    """Make the virtual environment that executes bundles.

    It comes from the device's index, or from wheels pushed to incoming/. With `query_only` nothing is made:
    `installed` is None when there is no such runtime.

    It counts only once `ready.json` stands in it; a half-made one is made again.
    """
    lock = request["lock"]
    if not LOCK_NAME.match(lock):
        raise AgentFailure("bad_request", f"not a runtime: {lock!r}")
    folder = RUNTIMES / lock
    with held("lock", request):
        ready = folder / "ready.json"
        if ready.is_file():
            return dict(json.loads(ready.read_text(encoding="utf-8")), installed=False)
        if request.get("query_only"):
            return {"installed": None}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        wheels = [take_wheel(wheel, folder / "wheels") for wheel in request.get("wheels", [])]
        python = make_venv(folder / "venv", wheels)
        install_packages(python, request["packages"], wheels)
        freeze = import_probe(python)
        write_durably(ready, json.dumps({"lock": lock, "packages": freeze}))
        shutil.rmtree(folder / "wheels", ignore_errors=True)
        for wheel in request.get("wheels", []):
            (INCOMING / f"{wheel['sha256']}.part").unlink()
        return {"lock": lock, "packages": freeze, "installed": True}


def take_wheel(wheel: dict[str, str], folder: Path) -> str:
    """Verify a pushed wheel and give it back its name, which pip reads.

    It stays in incoming/ until all is installed.
    """
    name, sha256 = wheel["name"], wheel["sha256"]
    if not WHEEL_NAME.match(name) or not HEX64.match(sha256):
        raise AgentFailure("bad_request", f"not a wheel: {name!r}")
    part = INCOMING / f"{sha256}.part"
    if not part.is_file() or sha256_file(part) != sha256:
        part.unlink(missing_ok=True)
        raise AgentFailure(
            "corrupt", f"{name} doesn't have its SHA-256 on the device", "deploy again: it is sent afresh"
        )
    folder.mkdir(mode=0o700, exist_ok=True)
    os.link(part, folder / name)
    return str(folder / name)


def make_venv(folder: Path, wheels: list[str]) -> str:
    pip_needed = not wheels
    if pip_needed and importlib.util.find_spec("ensurepip") is None:
        raise AgentFailure(
            "no_pip",
            "this Python can't make a virtual environment with pip (ensurepip is missing)",
            "install python3-venv on the device, or deploy with --offline",
        )
    progress("runtime: virtual environment", 0, 3)
    argv = [sys.executable, "-m", "venv", *([] if pip_needed else ["--without-pip"]), str(folder)]
    run_or_fail(argv, "no_venv", "making the virtual environment failed", "install python3-venv on the device")
    return str(folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))


def install_packages(python: str, packages: list[str], wheels: list[str]) -> None:
    progress("runtime: packages", 1, 3)
    quiet = ["install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    quiet += ["--only-binary", ":all:"]
    if wheels:
        pip = next((wheel for wheel in wheels if Path(wheel).name.startswith("pip-")), None)
        if pip is None:
            raise AgentFailure("bad_request", "no pip wheel among the pushed wheels")
        # A wheel is a zip that Python can run: pip installs from its own wheel, without being installed.
        others = [wheel for wheel in wheels if wheel != pip]
        argv = [python, f"{pip}/pip", *quiet, "--no-index", "--no-deps", *others]
    else:
        argv = [python, "-m", "pip", *quiet, *packages]
    hint = None if wheels else "no package index there? deploy with --offline"
    run_or_fail(argv, "pip", "installing the runtime failed", hint)


def import_probe(python: str) -> list[str]:
    """Import the runtime in a process of its own: a wheel for another CPU dies there, not in a first chat."""
    progress("runtime: import", 2, 3)
    code = (
        "import json, onnxruntime_genai; from importlib import metadata;"
        "print(json.dumps(sorted(d.name + '==' + d.version for d in metadata.distributions())))"
    )
    argv = [python, "-c", code]
    output = run_or_fail(argv, "import", "the runtime is installed but doesn't import on this device", None)
    packages: list[str] = json.loads(output.splitlines()[-1])
    return packages


def run_or_fail(argv: list[str], code: str, message: str, hint: str | None) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode == 0:
        return done.stdout.decode("utf-8", "replace")
    stderr = done.stderr.decode("utf-8", "replace")
    sys.stderr.write(stderr)
    if "No space left on device" in stderr:
        raise AgentFailure("device_full", f"{message}: no space left on the device", "free some space there")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise AgentFailure(code, f"{message}: killed by {name}", death_hint(-done.returncode))
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {done.returncode}"
    raise AgentFailure(code, f"{message}: {last}", hint)
