"""The pinned Python packages that execute bundles on a target: which ones, and their wheels for an offline
device.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.config import cache_dir
from toolkit.errors import ConfigError, MissingExtra
from toolkit.events import Progress, Service
from toolkit.profiles import Profile
from toolkit.targets import Target

# Devices of one rollout want the same wheels at the same time.
_resolving = threading.Lock()
_POLL_S = 0.2
_WAITING = Progress("resolve wheels", 0, None)


@dataclass(frozen=True)
class Runtime:
    """A set of pins for one Python on one platform; `lock` names it on the target.

    `installed` is everything that stands in the virtual environment, pins and what they pull in.
    """

    lock: str
    packages: tuple[str, ...]
    python: str
    platform_tags: tuple[str, ...]
    installed: tuple[str, ...] = ()

    def with_installed(self, packages: list[str]) -> Runtime:
        return replace(self, installed=tuple(packages))


def describe(target: Target, profile: Profile, probe: dict[str, Any]) -> Runtime:
    """The runtime that a profile asks for, for the Python that the probe found on the target.

    Raises ConfigError when that Python is too old or too new for the pinned wheels.
    """
    from packaging.specifiers import SpecifierSet

    wanted = profile.runtime
    if probe["python"] not in SpecifierSet(wanted.python):
        raise ConfigError(
            f"{target.name}: '{target.python}' is Python {probe['python']}, the runtime needs {wanted.python}",
            "install another Python there and name it as `python` in the target's file",
        )
    python = ".".join(probe["python"].split(".")[:2])
    identity = [sorted(wanted.packages), python, probe["arch"], probe["os"]]
    lock = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return Runtime(lock, tuple(wanted.packages), python, tuple(wanted.platform_tags))


def resolve_wheels(runtime: Runtime, local_folder: Path | None) -> Service[list[Path]]:
    """Wheels of the runtime, all it needs and pip, for the target's platform; downloaded once, then cached.

    `local_folder` is asked before the index, for wheels that no index has.
    Raises ConfigError with pip's own last words when something can't be resolved.
    """
    folder = cache_dir() / "wheels" / runtime.lock
    while not _resolving.acquire(timeout=_POLL_S):
        yield _WAITING
    try:
        if not folder.is_dir():
            beside = folder.with_name(f".{runtime.lock}.part")
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            yield from _download(runtime, beside, local_folder)
            beside.rename(folder)
    finally:
        _resolving.release()
    return sorted(folder.glob("*.whl"))


def _download(runtime: Runtime, folder: Path, local_folder: Path | None) -> Service[None]:
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    argv += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", runtime.python]
    for tag in runtime.platform_tags:
        argv += ["--platform", tag]
    if local_folder:
        argv += ["--find-links", str(local_folder)]
    status, said = yield from _run([*argv, "--dest", str(folder), *runtime.packages, "pip"])
    if status == 0:
        return
    if "No module named pip" in said:
        raise MissingExtra("resolving wheels needs pip in this Python", f"{sys.executable} -m ensurepip")
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")] or [said.strip()]
    raise ConfigError(
        f"no wheels of {', '.join(runtime.packages)} for Python {runtime.python}, "
        f"{runtime.platform_tags[0]}: {errors[-1].removeprefix('ERROR: ')}",
        "put the missing wheels into a folder and give it with --wheels",
    )


def _run(argv: Sequence[str]) -> Service[tuple[int, str]]:
    """Exit status and stderr of a command; whoever closes the service ends the command."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    status = child.wait(timeout=_POLL_S)
                    break
                yield _WAITING
        finally:
            child.kill()
            child.wait()
        stderr.seek(0)
        return status, stderr.read()
