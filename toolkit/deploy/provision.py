"""The runtime on a device: a Python that suits it, and its wheels, from the device's index or from here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.agent.requests import FindPythons, Provision, SentWheel, TakeProbe
from toolkit.bundle import describe_file
from toolkit.catalog import ProbeFacts
from toolkit.catalog.obstacles import RUNTIME_FILES, program_obstacle, room_obstacle, root_obstacle
from toolkit.catalog.python import Interpreter, best, suits
from toolkit.catalog.target import can_be_python
from toolkit.deploy.consent import ask_for_strange, ask_for_unlocked
from toolkit.deploy.push import Upload, push
from toolkit.deploy.runtime import Runtime, describe, fetch_wheels, unsuitable_python
from toolkit.device import Device, check_profile
from toolkit.errors import ConfigError, DeviceError, DeviceFull, NoIndex
from toolkit.events import Service, Step


def suitable_probe(device: Device) -> Service[ProbeFacts]:
    """Probe the device with a Python that suits its profile's runtime.

    If the target's file names no Python and the default one doesn't suit, the newest other one there that suits is
    used. Raises ConfigError when the device isn't of its profile's class, or no such Python may be used; the hint says
    what to type.
    """
    probe = yield from device.call(TakeProbe())
    obstacle = program_obstacle(probe)
    if obstacle is None:
        check_profile(device, probe)
        if suits(probe.python, device.profile.runtime.python):
            return probe
        refused = unsuitable_python(device.target, device.profile, probe.python, probe.os_name)
    else:
        refused = ConfigError(f"{device.target.name}: {obstacle.seen}", obstacle.hint)
    choice = other_python(device)
    if choice is None:
        raise refused
    if device.target.names_python:
        hint = f'there is a Python {choice.version}: python = "{choice.path}" in the target\'s file'
        raise ConfigError(refused.message, hint)
    yield Step(f"{refused.message}: {choice.path} ({choice.version}) is taken")
    device.agent.use_python(choice.path)
    probe = yield from device.call(TakeProbe())
    check_profile(device, probe)
    return probe


def refuse_root(device: Device, probe: ProbeFacts) -> None:
    """Raise DeviceError where no program can be loaded from the install root: a runtime there would never work."""
    if obstacle := root_obstacle(probe):
        raise DeviceError(f"{device.target.name}: {obstacle.seen}", obstacle.hint)


def refuse_room(device: Device, probe: ProbeFacts, *, files: int) -> None:
    """Raise DeviceFull where the install root takes no `files` more, or where a quota leaves this user no space."""
    if obstacle := room_obstacle(probe, files=files):
        raise DeviceFull(f"{device.target.name}: {obstacle.seen}", obstacle.hint)


def other_python(device: Device) -> Interpreter | None:
    """The newest Python there that suits the profile's runtime, whichever the agent runs with; None if none suits."""
    found = (Interpreter(one.path, one.version, one.has_ensurepip) for one in device.ask(FindPythons()).pythons)
    return best((other for other in found if can_be_python(other.path)), device.profile.runtime.python)


def ensure_runtime(
    device: Device, probe: ProbeFacts, *, offline: bool | None = None, wheels: Path | None = None
) -> Service[Runtime]:
    """Have the profile's runtime installed, and seen to import; other runtimes that are there stay beside it.

    Its wheels come from the device's index with `offline` False, from here with True or with a folder of `wheels`.
    With None they come from here when the device reaches no index. Raises ConfigError when the user doesn't consent to
    packages without a locked hash.
    """
    runtime = describe(device.target, device.profile, probe)
    answer = device.ask(Provision(lock=runtime.lock, packages=runtime.packages, query_only=True))
    if answer.installed is False:
        yield Step(f"{device.target.name}: runtime {runtime.lock} is installed", skipped=True)
        return runtime.with_installed(answer.packages)
    refuse_room(device, probe, files=RUNTIME_FILES)
    if wheels is None:
        yield from ask_for_unlocked(device.target.name, runtime)
    from_here = offline or wheels is not None
    if not from_here:
        try:
            return (yield from _install(device, runtime, ()))
        except NoIndex as exc:
            if offline is False:
                raise
            yield Step(f"{exc.message}: its wheels are pushed from here")
    yield Step(f"fetch wheels for {runtime.platform}")
    fetched = yield from fetch_wheels(runtime, wheels)
    if wheels is not None:
        yield from ask_for_strange(device.target.name, fetched, wheels)
    files = [_upload(wheel) for wheel in fetched]
    yield from push(device, files)
    return (yield from _install(device, runtime, files))


def _install(device: Device, runtime: Runtime, files: Sequence[Upload]) -> Service[Runtime]:
    """Install a runtime from pushed files or, without any, from the device's index."""
    yield Step(f"{device.target.name}: install runtime {runtime.lock} ({', '.join(runtime.packages)})")
    wheels: list[SentWheel] = [{"name": file.source.name, "sha256": file.sha256} for file in files]
    answer = yield from device.call(provision_request(runtime, wheels))
    return runtime.with_installed(answer.packages)


def provision_request(runtime: Runtime, wheels: Sequence[SentWheel]) -> Provision:
    """The request to install a runtime from `wheels` in the agent's incoming/ or, without any, from its index."""
    if wheels:
        return Provision(lock=runtime.lock, packages=runtime.packages, wheels=wheels)
    if runtime.wheels is None:
        return Provision(lock=runtime.lock, packages=runtime.packages)
    locked = [wheel.requirement for wheel in runtime.wheels.wheels]
    smallest = runtime.wheels.smallest.requirement
    return Provision(lock=runtime.lock, packages=runtime.packages, locked=locked, smallest=smallest)


def _upload(path: Path) -> Upload:
    artifact = describe_file(path, path.name)
    return Upload(path, artifact.sha256, artifact.size_bytes)
