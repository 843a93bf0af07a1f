"""The checks of a target, one after the other, from its file to its active release."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial

from toolkit.agent.requests import Provision, TakeProbe
from toolkit.catalog import ProbeFacts, Profile, Target, load_profile, load_target, python
from toolkit.catalog.profile import list_profiles
from toolkit.catalog.remote_path import python_argv
from toolkit.deploy.provision import other_python
from toolkit.deploy.releases import load_active
from toolkit.deploy.runtime import describe, unsuitable_python
from toolkit.device import Device, PromptSecret, Transport, open_transport
from toolkit.device.account import commands_refused
from toolkit.device.conversation import no_python_hint
from toolkit.device.dial import remembered
from toolkit.device.ssh.config import SshOptions, resolve
from toolkit.device.starter import find_starter
from toolkit.device.transport import finish
from toolkit.errors import (
    AgentDied,
    AgentError,
    AuthFailed,
    ConfigError,
    DeviceError,
    ExposedRoot,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    ToolkitError,
)
from toolkit.events import drain
from toolkit.jobs.doctor import checks
from toolkit.jobs.doctor.checks import Check, ok, skipped

TARGET = "target"
REACHED_BY_SSH = ("name", "port", "host key", "login", "SFTP", "sessions")
_SYSTEM = (
    *("python", "shell", "install root", "agent", "platform", "pip", "runtime", "glibc", "memory", "disk", "clock"),
)
_CONDITION = ("processors", "governor", "power mode", "temperature", "throttling")
ON_DEVICE = (*_SYSTEM, *_CONDITION, "profile", "active release")


def exit_code(target: str | None, found: Iterable[Check]) -> int:
    """The exit code: 0 when nothing failed, 3 when this machine or the target's file is at fault, 7 for a device."""
    failed = {check.name for check in found if check.state == "failed"}
    if not failed:
        return 0
    here = target is None or failed == {TARGET}
    return ConfigError.exit_code if here else DeviceError.exit_code


def examine_target(name: str, prompt_secret: PromptSecret | None = None) -> Iterator[Check]:
    """Give every check of a target as soon as it is made; checks that a failed one makes impossible are skipped.

    The agent is put there if it is missing; nothing else changes. `prompt_secret` as in `open_transport`.
    """
    prompt_secret = prompt_secret and remembered(prompt_secret)
    names = [TARGET, *REACHED_BY_SSH, *ON_DEVICE]
    blocker = TARGET
    for check in _examine(name, prompt_secret):
        names.remove(check.name)
        blocker = check.name if check.state == "failed" else blocker
        yield check
    yield from (skipped(missing, f"not looked at: {blocker} failed") for missing in names)


def _examine(name: str, prompt_secret: PromptSecret | None) -> Iterator[Check]:
    try:
        target = load_target(name)
        profile = load_profile(target.profile)
        options = None if target.transport == "local" else resolve(target)
    except ConfigError as exc:
        yield _failure(TARGET, exc)
        return
    where = f"{options.user}@{options.hostname}, port {options.port}" if options else "this machine"
    yield ok(TARGET, f"{where}, profile {profile.name}")
    reach = _reach_here(target) if options is None else _reach(target, options, prompt_secret)
    transport = yield from reach
    if transport is None:
        return
    try:
        yield from _examine_device(Device(target, profile, transport, partial(open_transport, target, prompt_secret)))
    finally:
        transport.close()


def _reach_here(target: Target) -> Generator[Check, None, Transport | None]:
    yield from (skipped(name, "this machine is reached without SSH") for name in REACHED_BY_SSH)
    return open_transport(target)


def _reach(
    target: Target, options: SshOptions, prompt_secret: PromptSecret | None
) -> Generator[Check, None, Transport | None]:
    """Check the way from the name to a session for files; return the connection, None when a check failed."""
    name, port, host_key, login, sftp, sessions = REACHED_BY_SSH
    from toolkit.device.ssh.client import SshTransport

    if options.proxy_command:
        yield skipped(name, "the host on the way to it looks it up")
    else:
        from toolkit.device.ssh.link import look_up

        try:
            yield ok(name, f"is {', '.join(look_up(target, options))}")
        except HostUnreachable as exc:
            yield _failure(name, exc)
            return None
    transport = yield from _open(target, prompt_secret, port, host_key, login)
    if transport is None:
        return None
    try:
        transport.size(".")
    except DeviceError as exc:
        transport.close()
        yield _failure(sftp, exc)
        return None
    yield ok(sftp, "works")
    if isinstance(transport, SshTransport):
        yield checks.sessions(1 + transport.free_sessions(checks.PUSH_SESSIONS - 1))
    else:
        yield skipped(sessions, "this machine's ssh counts them")
    return transport


def _open(
    target: Target, prompt_secret: PromptSecret | None, port: str, host_key: str, login: str
) -> Generator[Check, None, Transport | None]:
    """Open one connection; if that fails, the error tells which check failed."""
    answers, known = ok(port, "an SSH server answers"), ok(host_key, "is the one in known_hosts")
    try:
        transport = open_transport(target, prompt_secret)
    except HostUnreachable as exc:
        yield _failure(port, exc)
        return None
    except (HostKeyUnknown, HostKeyChanged) as exc:
        yield from (answers, _failure(host_key, exc))
        return None
    except AuthFailed as exc:
        yield from (answers, known, _failure(login, exc))
        return None
    yield from (answers, known, ok(login, "accepted"))
    return transport


def _examine_device(device: Device) -> Iterator[Check]:
    check, runs, noise = _python(device)
    yield check
    if not runs:
        return
    yield checks.shell(device.transport.shell_name, noise)
    try:
        device.agent.ensure()
    except ExposedRoot as exc:
        yield _failure("install root", exc)
        return
    except (AgentError, AgentDied) as exc:
        yield _failure("agent", exc)
        return
    except DeviceError as exc:
        root = device.target.install_root
        hint = f"on the device: mkdir -p {root} && touch {root}/x says why; or set install_root in the target's file"
        yield Check("install root", "failed", exc.message, exc.hint or hint)
        return
    try:
        before = time.time()
        probe = device.ask(TakeProbe())
        after = time.time()
    except ExposedRoot as exc:
        yield _failure("install root", exc)
        return
    except DeviceError as exc:
        yield _failure("agent", exc)
        return
    yield checks.install_root(probe)
    yield ok("agent", f"answers in {after - before:.1f} s")
    yield from _judge(device, probe, skew_s=probe.clock_unix_s - (before + after) / 2)
    yield _active_release(device)


def _python(device: Device) -> tuple[Check, bool, list[str]]:
    """Check the Python there against the profile; tell too if it can run the agent, and the lines printed besides.

    Where the target names no Python, the one that `deploy` would take instead of the default is looked for.
    """
    name, wanted = "python", device.profile.runtime.python
    found, noise = _version(device)
    if isinstance(found, Check) and not device.target.names_python and (starter := find_starter(device.transport)):
        device.agent.use_python(starter)
        found, noise = _version(device)
    if isinstance(found, Check):
        return _refused(device) or found, False, noise
    if python.suits(found, wanted):
        return ok(name, f"'{device.agent.python}' is {found}, the runtime needs {wanted}"), True, noise
    runs = tuple(int(part) for part in found.split(".")[:2]) >= python.OLDEST
    refused = unsuitable_python(device.target, device.profile, found)
    if runs and not device.target.names_python:
        with suppress(DeviceError):  # the install root may be at fault, and has a check of its own
            if other := other_python(device):
                device.agent.use_python(other.path)
                return ok(name, f"{refused.message}; {other.path} ({other.version}) is taken instead"), True, noise
    return _failure(name, refused), runs, noise


def _refused(device: Device) -> Check | None:
    """The failed check of an account that runs no command at all, whose Python isn't at fault."""
    if device.target.transport == "local" or device.transport.windows:
        return None
    refused = commands_refused(device.transport.start, device.target.name)
    return None if refused is None else _failure("python", refused)


def _version(device: Device) -> tuple[str | Check, list[str]]:
    """The version that the Python there tells, or a failed check if there is none; and the lines printed besides."""
    name, command = "python", device.target.python
    try:
        command = device.agent.python
        process = device.transport.start([*python_argv(command), "--version"])
        said, status = finish(process)
    except DeviceError as exc:
        return Check(name, "failed", exc.message, exc.hint or no_python_hint(command)), []
    found = next(filter(None, (re.search(r"Python (\d+\.\d+\.\S+)$", line) for line in reversed(said))), None)
    if found is None:
        last = ("\n".join(said).strip() or process.stderr_tail().strip() or "it said nothing").splitlines()[-1]
        message = f"'{command}' ended with exit code {status}: {last}"
        return Check(name, "failed", message, no_python_hint(command)), []
    return found[1], [text for line in said if (text := line.replace(found[0], "").strip())]


def _runtime(device: Device, probe: ProbeFacts) -> Check:
    """Check if the runtime, which executes bundles, is installed there."""
    name = "runtime"
    try:
        runtime = describe(device.target, device.profile, probe)
        answer = device.ask(Provision(lock=runtime.lock, packages=runtime.packages, query_only=True))
    except ToolkitError as exc:  # another check tells the fault
        return skipped(name, exc.message)
    if answer.installed is False:
        return ok(name, f"{runtime.lock} is installed")
    locked = "no wheels are locked" if runtime.wheels is None else f"{len(runtime.wheels.wheels)} wheels are locked"
    return skipped(name, f"not installed yet: a deploy brings it, from an index there or from here; {locked} for it")


def _judge(device: Device, probe: ProbeFacts, *, skew_s: float) -> Iterator[Check]:
    target, profile = device.target, device.profile
    profiles = [profile for profile in list_profiles() if isinstance(profile, Profile)]
    yield checks.platform(probe)
    yield checks.pip(target, probe)
    yield _runtime(device, probe)
    yield checks.glibc(profile, probe)
    yield checks.memory(profile, probe)
    yield checks.disk(probe)
    yield checks.clock(skew_s)
    yield checks.processors(probe)
    yield checks.governor(probe)
    yield checks.power_mode(probe)
    yield checks.temperature(probe)
    yield checks.throttling(probe)
    yield checks.profile_fits(target, profile, probe, profiles)


def _active_release(device: Device) -> Check:
    name = "active release"
    try:
        release = drain(load_active(device))
    except ToolkitError as exc:
        back = f"edgephi rollback {device.target.name}, or deploy the bundle again"
        return Check(name, "failed", exc.message, exc.hint or back)
    return skipped(name, "nothing is active") if release is None else ok(name, f"{release[:12]} loads and generates")


def _failure(name: str, exc: ToolkitError) -> Check:
    return Check(name, "failed", exc.message, exc.hint)
