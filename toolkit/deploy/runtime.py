"""The runtime: the pinned Python packages that execute bundles on a target, and their wheels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.catalog import ProbeFacts, Profile, Target
from toolkit.catalog.python import how_to_install, suits
from toolkit.deploy.wheels import Platform, WheelLock, digest, fetch_locked, find_lock, resolve
from toolkit.errors import ConfigError
from toolkit.events import Service


@dataclass(frozen=True)
class Runtime:
    """A set of pins for one Python on one platform; `lock` names it on the target.

    `wheels` are the files that are locked for it, None where edgephi ships no lock of these packages. `installed` are
    all packages of the virtual environment: the pinned ones and their dependencies.
    """

    lock: str
    packages: tuple[str, ...]
    platform: Platform
    wheels: WheelLock | None = None
    installed: tuple[str, ...] = ()

    def with_installed(self, packages: Iterable[str]) -> Runtime:
        return replace(self, installed=tuple(packages))


def describe(target: Target, profile: Profile, probe: ProbeFacts) -> Runtime:
    """The runtime that a profile asks for, for the Python that the probe found on the target.

    Its name derives from the hashes of the locked files, or from the pins without a lock: other files are another one.
    Raises ConfigError when that Python is too old or too new for the pinned wheels.
    """
    wanted = profile.runtime
    if not suits(probe.python, wanted.python):
        raise unsuitable_python(target, profile, probe.python, probe.os_name)
    return runtime_for(profile, ".".join(probe.python.split(".")[:2]))


def runtime_for(profile: Profile, python: str) -> Runtime:
    """The runtime of a profile for one version of Python, like 3.12."""
    wanted, hardware = profile.runtime, profile.hardware
    platform = Platform(python, hardware.os, hardware.arch, tuple(wanted.platform_tags))
    wheels = find_lock(wanted.packages, platform)
    if wheels is not None:
        return Runtime(wheels.identity, tuple(wanted.packages), platform, wheels)
    name = digest([sorted(wanted.packages), python, hardware.arch, hardware.os])
    return Runtime(name, tuple(wanted.packages), platform)


def unsuitable_python(target: Target, profile: Profile, python: str, os_name: str | None = None) -> ConfigError:
    """The error for a version of Python that doesn't suit the runtime; its hint says how to install another one there.

    `os_name` is the name of the device's system, where a probe has told it.
    """
    wanted = profile.runtime.python
    message = f"{target.name}: '{target.python}' is Python {python}, the runtime needs {wanted}"
    return ConfigError(message, how_to_install(os_name, wanted))


def fetch_wheels(runtime: Runtime, local_folder: Path | None) -> Service[list[Path]]:
    """Fetch all wheels that the runtime needs, and pip's, for the target's platform; downloaded once, then cached.

    They are the locked ones, unless there is no lock or `local_folder` holds wheels to prefer; then they are resolved
    by name and version. Raises ConfigError with pip's own last words when a wheel can't be had.
    """
    if runtime.wheels is not None and local_folder is None:
        return (yield from fetch_locked(runtime.wheels, runtime.platform))
    return (yield from resolve(runtime.packages, runtime.platform, runtime.lock, local_folder))
