"""The checks of this machine, one after the other: the things that edgephi needs here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata

from toolkit import localhost
from toolkit.catalog import Profile, load_profile, load_recipe, load_target
from toolkit.catalog.toml import find_toml
from toolkit.config import cache_dir
from toolkit.errors import ConfigError, UntrustedFile
from toolkit.jobs.doctor.checks import Check, ok, skipped
from toolkit.metrics.build_needs import free_disk_bytes
from toolkit.units import memory_text, size_text

DISTRIBUTION, EXTRA = "edgephi", "optimize"
# The hub's cache takes Phi-3-mini's 7.6 GB, a build up to three times the 2.7 GB of its bundle.
_PLENTY_DISK_BYTES, _LEAST_DISK_BYTES = 20_000_000_000, 1_000_000_000
_PLENTY_MEMORY_BYTES = 8 * 2**30


def examine_host() -> Iterator[Check]:
    """Give every check of this machine as soon as it is made."""
    yield _own_python()
    yield _extra()
    yield _cache_disk()
    yield _own_memory()
    yield _ssh_client()
    for kind, load in FILES.items():
        yield _files(kind, load)


def _load_with_profile(name: str) -> Profile:
    return load_profile(load_target(name).profile)


FILES: dict[str, Callable[[str], object]] = {
    "profiles": load_profile,
    "targets": _load_with_profile,
    "recipes": load_recipe,
}


def _own_python() -> Check:
    from packaging.specifiers import SpecifierSet

    version = ".".join(map(str, sys.version_info[:3]))
    try:
        wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"]
    except metadata.PackageNotFoundError:
        return skipped("python", f"{version}; {DISTRIBUTION} runs without being installed")
    if version in SpecifierSet(wanted):
        return ok("python", f"{version}, {DISTRIBUTION} needs {wanted}")
    return Check("python", "failed", f"{version}, {DISTRIBUTION} needs {wanted}", "install it into a newer Python")


def _extra() -> Check:
    name = f"{EXTRA} extra"
    try:
        wanted = extra_pins(metadata.requires(DISTRIBUTION) or [])
    except metadata.PackageNotFoundError:
        return skipped(name, f"{DISTRIBUTION} runs without being installed")
    found: dict[str, str | None] = {}
    for package in wanted:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return judge_extra(wanted, found)


def extra_pins(requires: Iterable[str]) -> dict[str, str]:
    """The versions that the extra asks for, by package, out of a distribution's `Requires-Dist`."""
    from packaging.requirements import Requirement

    every = [Requirement(text) for text in requires]
    return {
        requirement.name: str(requirement.specifier)
        for requirement in every
        if requirement.marker is not None
        and requirement.marker.evaluate({"extra": EXTRA})
        and not requirement.marker.evaluate({"extra": ""})
    }


def judge_extra(wanted: Mapping[str, str], found: Mapping[str, str | None]) -> Check:
    """Compare the versions that are installed with those that were seen to work together."""
    from packaging.specifiers import SpecifierSet

    name, install = f"{EXTRA} extra", f"pip install '{DISTRIBUTION}[{EXTRA}]' -c constraints.txt"
    missing = [package for package in wanted if found[package] is None]
    if len(missing) == len(wanted):
        return Check(name, "warn", "not installed: this machine deploys and measures, but can't quantize", install)
    other = [
        f"{package} {version} instead of {wanted[package].removeprefix('==')}"
        for package, version in found.items()
        if version is not None and not SpecifierSet(wanted[package]).contains(version, prereleases=True)
    ]
    if missing or other:
        return Check(name, "failed", ", ".join([*other, *(f"{package} is missing" for package in missing)]), install)
    return ok(name, f"{len(wanted)} packages, in the versions that were seen to work")


def _cache_disk() -> Check:
    folder = cache_dir()
    free = free_disk_bytes(folder)
    seen = f"{size_text(free)} free for {folder}"
    hint = "free some space, or set EDGEPHI_CACHE_DIR to another disk"
    if free < _LEAST_DISK_BYTES:
        return Check("disk", "failed", seen, hint)
    if free < _PLENTY_DISK_BYTES:
        plenty = size_text(_PLENTY_DISK_BYTES)
        return Check("disk", "warn", f"{seen}; fetching and quantizing Phi-3-mini takes about {plenty}", hint)
    return ok("disk", seen)


def _own_memory() -> Check:
    found = localhost.available_memory()
    if found is None:
        return skipped("memory", "this system doesn't tell")
    seen = f"{memory_text(found.total_bytes)} free{' under a memory limit' if found.limited else ''}"
    if found.total_bytes < _PLENTY_MEMORY_BYTES:
        hint = "edgephi plan MODEL --profile PROFILE tells what a build needs; close other programs, or add swap"
        plenty = memory_text(_PLENTY_MEMORY_BYTES)
        return Check("memory", "warn", f"{seen}; quantizing Phi-3-mini takes up to {plenty}", hint)
    return ok("memory", seen)


def _ssh_client() -> Check:
    ssh = shutil.which("ssh")
    if ssh is None:
        seen = "no ssh: Include, Match and ProxyJump of ~/.ssh/config aren't understood"
        return Check("ssh client", "warn", seen, "install OpenSSH's client (sudo apt-get install openssh-client)")
    done = subprocess.run([ssh, "-V"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return ok("ssh client", (done.stderr or done.stdout).strip() or ssh)


def _files(kind: str, load: Callable[[str], object]) -> Check:
    """Check that all files of a kind that a name reaches can be loaded; a target needs its profile too."""
    names = list(find_toml(kind))
    wrong, strange = [], []
    for name in names:
        try:
            load(name)
        except UntrustedFile as exc:
            strange.append(exc)
        except ConfigError as exc:
            wrong.append(exc.message)
    if wrong:
        return Check(kind, "failed", "\n".join(wrong), "correct or delete the file; an editor checks it by docs/schema")
    if strange:
        return Check(kind, "warn", "\n".join(exc.message for exc in strange), strange[0].hint)
    return ok(kind, f"{len(names)} files, all readable")
