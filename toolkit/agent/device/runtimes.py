"""The virtual environments that execute bundles."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from toolkit.localhost.pip import index_settings, own_environment

from .files import link_or_copy, refuse_long_paths, remove
from .layout import INCOMING, LOCK_NAME, RUNTIMES, flush_tree, sha256_file, write_durably
from .locks import held
from .parsers import parse_missing_library
from .protocol import HEX64, AgentFailure, death_of, progress

# The way pip is called, and the time that a device may take to show that it has an index.
QUIET = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--only-binary", ":all:"]
INDEX_TIMEOUT_S, INDEX_PATIENCE_S = 5, 30
# The longest path below site-packages that a runtime has.
DEEPEST_FILE = 125
NO_DLL = "where a DLL is missing: winget install Microsoft.VCRedist.2015+.x64 (or .arm64) there, then run it again"
# The system's words for a disk that takes no more, and ours.
FULL = {
    "No space left on device": "no space left on the device",
    "Disk quota exceeded": "the user's disk quota there is used up",
}
WHEEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+!-]*\.whl\Z")


def op_provision(request: dict[str, Any]) -> dict[str, Any]:
    """Make the virtual environment that executes bundles.

    It comes from the device's index, by name, version and hash where the request has `locked`, or from wheels pushed to
    incoming/. With `query_only` nothing is made: `installed` is None when there is no such runtime.

    An environment counts only once `ready.json` stands in it, after it was seen to import; a half-made one is made
    again. Others that are there already stay as they are.
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
        refuse_long_paths([str(folder / "venv" / "Lib" / "site-packages" / ("x" * DEEPEST_FILE))])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        try:
            freeze = make_runtime(folder, request)
        except AgentFailure:
            # A runtime that can't be used isn't left to fill the disk.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # Else ready.json could outlive a power cut that the runtime's files don't.
        flush_tree(folder)
        write_durably(ready, json.dumps({"lock": lock, "packages": freeze}))
        shutil.rmtree(folder / "wheels", ignore_errors=True)
        for wheel in request.get("wheels", []):
            remove(INCOMING / f"{wheel['sha256']}.part")
        return {"lock": lock, "packages": freeze, "installed": True}


def make_runtime(folder: Path, request: dict[str, Any]) -> list[str]:
    """Make the environment and see it import; returns its packages."""
    wheels = [take_wheel(wheel, folder / "wheels") for wheel in request.get("wheels", [])]
    python = make_venv(folder / "venv", wheels)
    if wheels:
        install_wheels(python, wheels)
    else:
        index = index_settings([python, "-I", "-m", "pip"], os.environ)
        environment = dict(own_environment(os.environ), **index)
        ask_index(python, folder, request.get("smallest", "pip"), environment)
        install_from_index(python, folder, request, environment)
    return import_probe(python)


def take_wheel(wheel: dict[str, str], folder: Path) -> str:
    """Verify a pushed wheel and give it back its name, which pip reads.

    It stays in incoming/ until all is installed.
    """
    name, sha256 = wheel["name"], wheel["sha256"]
    if not WHEEL_NAME.match(name) or not HEX64.match(sha256):
        raise AgentFailure("bad_request", f"not a wheel: {name!r}")
    part = INCOMING / f"{sha256}.part"
    if not part.is_file() or sha256_file(part) != sha256:
        remove(part)
        raise AgentFailure(
            "corrupt", f"{name} doesn't have its SHA-256 on the device", "deploy again: it is sent afresh"
        )
    folder.mkdir(mode=0o700, exist_ok=True)
    link_or_copy(part, folder / name)
    return str(folder / name)


def make_venv(folder: Path, wheels: list[str]) -> str:
    pip_needed = not wheels
    if pip_needed and importlib.util.find_spec("ensurepip") is None:
        raise AgentFailure(
            "no_index",
            "its Python can't make a virtual environment with pip (ensurepip is missing)",
            "install python3-venv on the device, or deploy with --offline",
        )
    progress("runtime: virtual environment", 0, 3)
    argv = [sys.executable, "-I", "-m", "venv", *([] if pip_needed else ["--without-pip"]), str(folder)]
    run_or_fail(argv, "no_venv", "making the virtual environment failed", "install python3-venv on the device")
    return str(folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))


def ask_index(python: str, folder: Path, requirement: str, environment: dict[str, str]) -> None:
    """Have pip fetch one small wheel without patience, so that the host soon learns that it has to push all of them."""
    lines = folder / "smallest.txt"
    lines.write_text(requirement + "\n", encoding="utf-8")
    argv = [
        python,
        "-I",
        "-m",
        "pip",
        "download",
        *QUIET,
        "--no-deps",
        "--retries",
        "0",
        "--timeout",
        str(INDEX_TIMEOUT_S),
    ]
    argv += ["--dest", str(folder / "smallest"), "-r", str(lines)]
    name = requirement.split()[0]
    message = f"the device has no package index that gives {name}"
    hint = "deploy without --online: wheels are pushed then"
    try:
        run_or_fail(argv, "no_index", message, hint, environment, timeout_s=INDEX_PATIENCE_S)
    except subprocess.TimeoutExpired as exc:
        raise AgentFailure("no_index", f"{message} within {INDEX_PATIENCE_S} s", hint) from exc
    shutil.rmtree(folder / "smallest", ignore_errors=True)


def install_from_index(python: str, folder: Path, request: dict[str, Any], environment: dict[str, str]) -> None:
    """Install the locked files and no others where there is a lock; else the versions that pip resolves to today."""
    progress("runtime: packages", 1, 3)
    if "locked" in request:
        lines = folder / "locked.txt"
        lines.write_text("\n".join(request["locked"]) + "\n", encoding="utf-8")
        wanted = ["--no-deps", "--require-hashes", "-r", str(lines)]
    else:
        wanted = request["packages"]
    argv = [python, "-I", "-m", "pip", "install", *QUIET, *wanted]
    hint = "deploy with --offline: wheels are pushed then"
    run_or_fail(argv, "pip", "installing the runtime failed", hint, environment)


def install_wheels(python: str, wheels: list[str]) -> None:
    progress("runtime: packages", 1, 3)
    pip = next((wheel for wheel in wheels if Path(wheel).name.startswith("pip-")), None)
    if pip is None:
        raise AgentFailure("bad_request", "no pip wheel among the pushed wheels")
    # A wheel is a zip that Python can run: pip installs from its own wheel, without being installed.
    others = [wheel for wheel in wheels if wheel != pip]
    argv = [python, "-I", f"{pip}/pip", "install", *QUIET, "--no-index", "--no-deps", *others]
    run_or_fail(argv, "pip", "installing the runtime failed", None)


def import_probe(python: str) -> list[str]:
    """Import the runtime in a process of its own: a wheel for another CPU dies there, not in a first chat."""
    progress("runtime: import", 2, 3)
    code = (
        "import json, onnxruntime_genai; from importlib import metadata;"
        "print(json.dumps(sorted(d.name + '==' + d.version for d in metadata.distributions())))"
    )
    message = "the runtime is installed but doesn't import on this device"
    try:
        output = run_or_fail([python, "-I", "-c", code], "import", message, NO_DLL if sys.platform == "win32" else None)
    except AgentFailure as exc:
        missing = parse_missing_library(exc.message)
        if missing is None:
            raise
        has = " ".join(platform.libc_ver())
        text = f"the runtime's wheels need {missing}, which this device hasn't got" + (f"; it has {has}" if has else "")
        raise AgentFailure("import", text, "install a newer system there: Debian 12, Ubuntu 24.04 or later") from exc
    packages: list[str] = json.loads(output.splitlines()[-1])
    return packages


def run_or_fail(
    argv: list[str],
    code: str,
    message: str,
    hint: str | None,
    environment: dict[str, str] | None = None,
    timeout_s: float | None = None,
) -> str:
    """The output of a command that has to succeed. Without an `environment`, settings of pip are no matter to it.

    Raises AgentFailure with the command's last words.
    """
    environment = environment or own_environment(os.environ)
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout_s
    )
    if done.returncode == 0:
        return done.stdout.decode("utf-8", "replace")
    stderr = done.stderr.decode("utf-8", "replace")
    sys.stderr.write(stderr)
    full = next((words for said, words in FULL.items() if said in stderr), None)
    if full:
        raise AgentFailure("device_full", f"{message}: {full}", "free some space there")
    death = death_of(done.returncode)
    if death:
        raise AgentFailure(code, f"{message}: killed by {death[0]}", death[1])
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # pip says what is wrong and then, at length, why.
    errors = [line[len("ERROR: ") :] for line in lines if line.startswith("ERROR: ")]
    last = (errors or lines or [f"exit code {done.returncode}"])[-1]
    raise AgentFailure(code, f"{message}: {last}", hint)
