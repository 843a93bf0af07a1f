"""Writes the locks of `toolkit/data/wheels`, one for each shipped runtime, platform and Python: `make locks`.

pip resolves against the index that it is configured for, and the index's own hashes are locked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from toolkit.catalog import Profile
from toolkit.catalog.profile import list_profiles
from toolkit.catalog.python import MINORS
from toolkit.deploy.wheels import LOCKS, Platform, Wheel, WheelLock, lock_name, target_options
from toolkit.units import size_text

_SYSTEMS = {"linux": ("linux", "Linux", "posix"), "windows": ("win32", "Windows", "nt")}
_WINDOWS_MACHINES = {"aarch64": "ARM64", "x86_64": "AMD64"}
_HEAD_TIMEOUT_S = 60


class Unresolved(Exception):
    """pip couldn't resolve the packages; the message is its last words."""


def wanted_locks(profiles: Sequence[Profile]) -> Iterator[tuple[str, tuple[str, ...], Platform, str | None]]:
    """The locks to make, each once: name, packages, platform, and a note on the source of packages the index lacks.

    Profile `local` is left out: it stands for any machine, and its runtime is one of the others'.
    """
    seen = set()
    for profile in sorted(profiles, key=lambda profile: profile.runtime.provider):
        hardware, runtime = profile.hardware, profile.runtime
        packages = tuple(sorted(runtime.packages))
        for python in MINORS:
            key = (packages, hardware.os, hardware.arch, python)
            if profile.name != "local" and python in SpecifierSet(runtime.python) and key not in seen:
                seen.add(key)
                platform = Platform(python, hardware.os, hardware.arch, runtime.platform_tags)
                yield _set_name(packages, profiles), packages, platform, runtime.wheel_index_note


def _set_name(packages: tuple[str, ...], profiles: Sequence[Profile]) -> str:
    """The first provider whose profiles have these packages."""
    return min(p.runtime.provider for p in profiles if tuple(sorted(p.runtime.packages)) == packages)


def make_lock(packages: tuple[str, ...], platform: Platform) -> WheelLock:
    """Lock all that the packages need on a platform. Raises Unresolved when the index hasn't got it."""
    wanted = [*packages, "pip"]
    entries = _resolve(wanted, platform)
    # pip reads conditions like `sys_platform == "win32"` for the machine that it runs on.
    while missing := _left_out(entries, platform):
        wanted += missing
        entries = _resolve(wanted, platform)
    found = {str(canonicalize_name(entry["metadata"]["name"])): _wheel(entry) for entry in entries}
    pip = found.pop("pip")
    ordered = tuple(wheel for _, wheel in sorted(found.items()))
    return WheelLock(
        packages=packages, python=platform.python, os=platform.os, arch=platform.arch, wheels=ordered, pip=pip
    )


def _resolve(packages: Sequence[str], platform: Platform) -> list[dict[str, Any]]:
    """The entries of pip's report on the wheels that it would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        argv = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        argv += ["--target", folder, "--report", str(report), *target_options(platform), *packages]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise Unresolved((done.stderr.strip() or "pip said nothing").splitlines()[-1])
        entries: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return entries


def _left_out(entries: Sequence[Mapping[str, Any]], platform: Platform) -> list[str]:
    """The requirements, without their conditions, that hold on the target and that no entry satisfies."""
    sys_platform, system, os_name = _SYSTEMS[platform.os]
    environment = {
        "python_version": platform.python,
        "python_full_version": f"{platform.python}.0",
        "sys_platform": sys_platform,
        "platform_system": system,
        "platform_machine": _WINDOWS_MACHINES[platform.arch] if platform.os == "windows" else platform.arch,
        "os_name": os_name,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    names = {canonicalize_name(entry["metadata"]["name"]) for entry in entries}
    missing = []
    for entry in entries:
        for text in entry["metadata"].get("requires_dist", []):
            requirement = Requirement(text)
            holds = requirement.marker is None or requirement.marker.evaluate(environment)
            if holds and canonicalize_name(requirement.name) not in names:
                missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def _wheel(entry: Mapping[str, Any]) -> Wheel:
    url, metadata = entry["download_info"]["url"], entry["metadata"]
    # The report has no sizes; a HEAD request tells them without a download.
    request = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(request, timeout=_HEAD_TIMEOUT_S) as answer:
        size = int(answer.headers["Content-Length"])
    return Wheel(
        name=metadata["name"],
        version=metadata["version"],
        file=url.rpartition("/")[2],
        sha256=entry["download_info"]["archive_info"]["hashes"]["sha256"],
        size_bytes=size,
    )


def main() -> int:
    """Write every lock and print its name, and remove those that no profile needs any more."""
    profiles = [profile for profile in list_profiles() if isinstance(profile, Profile)]
    written, failed = set(), False
    LOCKS.mkdir(exist_ok=True)
    for name, packages, platform, elsewhere in wanted_locks(profiles):
        path = LOCKS / lock_name(name, platform)
        try:
            lock = make_lock(packages, platform)
        except Unresolved as exc:
            # Packages from elsewhere can't be locked here; for all others the index is at fault.
            failed = failed or elsewhere is None
            print(f"no lock of {name} for {platform}: {exc}", file=sys.stderr)
            continue
        path.write_text(lock.model_dump_json(indent=1) + "\n", encoding="utf-8")
        written.add(path)
        print(f"{path.name}: {len(lock.wheels)} wheels, {size_text(sum(w.size_bytes for w in lock.wheels))}")
    if failed:
        return 1
    for path in set(LOCKS.glob("*.json")) - written:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
