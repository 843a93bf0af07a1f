"""Every error that edgephi words for its users: what is wrong, where, and what to do next. An error's exit code is
part of the command line's contract.

Config 3, missing extra 4, build 5, corrupt bundle 6, device 7, registry 8, signature 9, gate failed 10. Click keeps 2
for usage, a bug is 70, Ctrl-C is 130, SIGTERM 143, SIGHUP 129. A result that stdout doesn't take is 1.
"""

from __future__ import annotations


class ToolkitError(Exception):
    """Base of all expected failures.

    `message` says what is wrong and where; `hint`, if any, what to do next.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(ToolkitError):
    """A file, a name or a value the user gave is wrong."""

    exit_code = 3


class UntrustedFile(ConfigError):
    """A file of the working folder decides something that only the user, or a folder that they trust, may decide."""


class MissingExtra(ToolkitError):
    """An optional dependency set that this step needs isn't installed."""

    exit_code = 4


class BuildError(ToolkitError):
    """Turning a model into a bundle failed."""

    exit_code = 5


class OutOfMemory(BuildError):
    """The build was killed because memory ran out."""


class HostDiskFull(BuildError):
    """The disk of this machine has no room for the files that a step writes."""


class CorruptBundle(ToolkitError):
    """A bundle's files don't match its manifest."""

    exit_code = 6


class DeviceError(ToolkitError):
    """Something failed on the way to a device or on it."""

    exit_code = 7


class HostUnreachable(DeviceError):
    """No SSH server answered, or the link broke."""


class NoProgress(DeviceError):
    """The device answers, but what it was asked for doesn't come nearer to its end."""


class AuthFailed(DeviceError):
    """The server refused every key that was offered."""


class HostKeyUnknown(DeviceError):
    """The server's key is in no known_hosts file."""


class HostKeyChanged(DeviceError):
    """The server's key differs from the one in known_hosts."""


class RemoteCommandFailed(DeviceError):
    """A command on the device exited with an error."""


class AgentDied(RemoteCommandFailed):
    """The agent on the device ended without an answer."""


class NoPython(RemoteCommandFailed):
    """The target's Python isn't there, or is too old to run the agent."""


class AgentError(DeviceError):
    """The agent on the device reported a failure, or answered with something else than the protocol."""


class ExposedRoot(AgentError):
    """Another user owns the install root or can write to it: the agent doesn't work there."""


class NoIndex(AgentError):
    """The device reaches no package index that has the runtime's wheels."""


class DeviceFull(DeviceError):
    """The device has too little free space."""


class RegistryError(ToolkitError):
    """A registry or a mirror of it doesn't answer, refuses, or lacks the requested content."""

    exit_code = 8


class SignatureError(ToolkitError):
    """A bundle lacks the demanded signature, or signing it failed."""

    exit_code = 9


class GateFailed(ToolkitError):
    """A bundle works, but breaks its profile's limits."""

    exit_code = 10


class RolloutFailed(ToolkitError):
    """Devices of a rollout failed. The exit code follows from the devices' codes."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code
