"""A target with an open connection and the agent on it: what deploy, bench and chat talk to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from toolkit.agent import AGENT_PATH, PROTOCOL, agent_sha256
from toolkit.errors import (
    AgentError,
    ConfigError,
    CorruptBundle,
    DeviceError,
    DeviceFull,
    RemoteCommandFailed,
)
from toolkit.events import Progress, Service, drain
from toolkit.profiles import Profile, list_profiles, load_profile
from toolkit.propose_profile import Match, misfit, propose_profile
from toolkit.runtime import Runtime
from toolkit.targets import Target, load_target
from toolkit.transport import Process, PromptSecret, Transport, open_transport

_ERRORS: dict[str, type[CorruptBundle] | type[DeviceError]] = {
    "device_full": DeviceFull,
    "corrupt": CorruptBundle,
}
# An agent's line holds a few kilobytes; a manifest list some hundred. Whoever sends more isn't our agent.
_LONGEST_LINE = 16 * 1024 * 1024


@dataclass
class Device:
    """One target, connected. Use `connect`, which closes it."""

    target: Target
    profile: Profile
    transport: Transport
    prepared: tuple[dict[str, Any], Runtime] | None = field(default=None, repr=False)
    _agent_path: str | None = field(default=None, repr=False)

    @property
    def python(self) -> str:
        """The Python there, as a command that is started in the login folder."""
        return _from_login_folder(self.target.python)

    def path(self, *parts: str) -> str:
        """A path under the install root, on the target; a relative one counts from the login folder."""
        return "/".join((_from_login_folder(self.target.install_root), *parts))

    def ensure_agent(self) -> str:
        """The agent's path on the target, after this version of it has been put there if it was missing."""
        if self._agent_path is None:
            path = self.path("agent", f"agent-{agent_sha256()[:16]}.py")
            if self.transport.size(path) != AGENT_PATH.stat().st_size:
                self.transport.make_dirs(self.path("agent"))
                for _ in self.transport.put(AGENT_PATH, path + ".tmp"):
                    pass
                self.transport.rename(path + ".tmp", path)
            self._agent_path = path
        return self._agent_path

    def start(self, op: str, **params: Any) -> Process:
        """Start the agent with one request; its stdin stays open."""
        process = self.transport.start([self.python, "-u", self.ensure_agent()])
        request = {"protocol": PROTOCOL, "op": op, **params}
        process.send(json.dumps(request, separators=(",", ":")).encode() + b"\n")
        return process

    def messages(self, process: Process) -> Iterator[tuple[str, Any]]:
        """The agent's (`event` | `result`, payload) until the result; an agent's error is raised."""
        for line in process.lines():
            kind, payload = self._parse(line, process)
            if kind == "error":
                error = _ERRORS.get(payload["code"], AgentError)
                raise error(f"{self.target.name}: {payload['message']}", payload.get("hint"))
            yield kind, payload
            if kind == "result":
                return
        self._explain_silence(process)

    def call(self, op: str, **params: Any) -> Service[Any]:
        """Run one operation, pass on its progress, return its result.

        Raises AgentError, DeviceFull, CorruptBundle, HostUnreachable, RemoteCommandFailed.
        """
        process = self.start(op, **params)
        finished = False
        try:
            process.close_stdin()
            for kind, payload in self.messages(process):
                if kind == "result":
                    finished = True
                    return payload
                if payload.get("type") == "progress":
                    yield Progress(payload["label"], payload["done"], payload["total"], payload["unit"])
        finally:
            if finished:
                process.wait()
            else:
                process.kill()

    def ask(self, op: str, **params: Any) -> Any:
        """`call` for the operations that are quick: the result, without progress."""
        return drain(self.call(op, **params))

    def _parse(self, line: bytes, process: Process) -> tuple[str, Any]:
        try:
            if len(line) > _LONGEST_LINE:
                raise ValueError("line too long")
            message = json.loads(line)
            if message["protocol"] != PROTOCOL:
                raise ValueError("other protocol")
            kind = next(kind for kind in ("event", "result", "error") if kind in message)
            payload = message[kind]
            if not isinstance(payload, dict) or (kind == "error" and not isinstance(payload.get("message"), str)):
                raise ValueError("not an object")
        except (ValueError, KeyError, TypeError, StopIteration) as exc:
            process.kill()
            raise AgentError(
                f"{self.target.name}: the agent said something that isn't its protocol: {line[:200]!r}",
                "does the login shell on the device print something by itself? It must not when it isn't interactive",
            ) from exc
        if kind == "error":
            payload.setdefault("code", "unknown")
        return kind, payload

    def _explain_silence(self, process: Process) -> None:
        status, stderr = process.wait(), process.stderr_tail().strip()
        last = stderr.splitlines()[-1] if stderr else "it said nothing"
        hint = None
        if status == 127 or "not found" in last:
            hint = no_python_hint(self.target.python)
        raise RemoteCommandFailed(f"{self.target.name}: the agent ended with exit code {status}: {last}", hint)


def no_python_hint(python: str) -> str:
    return f"is there a Python at '{python}'? Set `python` in the target's file, or install python3 on the device"


def _from_login_folder(path: str) -> str:
    # Commands and SFTP both start there, and no shell expands a tilde that is quoted.
    return path.removeprefix("~/")


@contextmanager
def connect(target: Target | str, prompt_secret: PromptSecret | None = None) -> Iterator[Device]:
    """Open a target by name or value; `prompt_secret` as in `open_transport`.

    Raises ConfigError for an unknown target or profile, DeviceError's children when it can't be reached.
    """
    if isinstance(target, str):
        target = load_target(target)
    profile = load_profile(target.profile)
    transport = open_transport(target, prompt_secret)
    try:
        yield Device(target, profile, transport)
    finally:
        transport.close()


def check_profile(device: Device, probe: dict[str, Any]) -> None:
    """Refuse a device that isn't of its profile's class: other CPU or system, or much less memory than the plan counts
    on.

    Raises ConfigError.
    """
    reason = misfit(device.profile, probe)
    if reason is not None:
        raise ConfigError(
            f"{device.target.name} (profile {device.profile.name}): {reason}",
            "set the right profile in the target's file; `edgephi profiles list` shows them",
        )


def identify(target: Target, prompt_secret: PromptSecret | None = None) -> Match:
    """Connect to a target, probe it and find the profile that suits it; the one it names isn't looked at.

    Raises ConfigError that names the candidates when none does, and whatever `connect` raises.
    """
    # The agent's probe asks nothing of a profile; `local` is always there.
    with connect(target.model_copy(update={"profile": "local"}), prompt_secret) as device:
        probe = device.ask("probe")
    profiles = [profile for profile in list_profiles() if isinstance(profile, Profile)]
    return propose_profile(probe, profiles, target.name)
