"""The device that deploy, bench and chat talk to: a target with an open connection and the agent on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from toolkit.agent.requests import A, Request, TakeProbe, WantedFile
from toolkit.catalog import ProbeFacts, Profile, Target, load_profile, load_target
from toolkit.catalog.obstacles import program_obstacle
from toolkit.catalog.profile import list_profiles
from toolkit.catalog.recognize import Match, misfit, propose_profile
from toolkit.catalog.remote_path import from_login_folder
from toolkit.device.conversation import Agent, Hold, Reply
from toolkit.device.dial import open_another, open_transport, remembered
from toolkit.device.transport import PromptSecret, Transport
from toolkit.errors import ConfigError
from toolkit.events import Service, drain


@dataclass(frozen=True)
class Device:
    """One target, connected. Use `connect`, which closes it."""

    target: Target
    profile: Profile
    transport: Transport
    # Opens another connection to the same target, which the caller closes.
    dial: Callable[[], Transport] = field(repr=False)
    # Pushing files there takes at most so much of the link; None allows all of it.
    limit_bytes_per_s: float | None = None

    @cached_property
    def agent(self) -> Agent:
        return Agent(self.target, self.transport)

    def path(self, *parts: str) -> str:
        """A path under the install root, on the target; a relative one counts from the login folder."""
        return "/".join((from_login_folder(self.target.install_root), *parts))

    def call(self, request: Request[A]) -> Service[A]:
        """Run one operation of the agent, pass on its progress, return its answer; raises what `Agent.call` does."""
        return (yield from self.agent.call(request))

    def ask(self, request: Request[A]) -> A:
        """`call` for quick operations: return the answer, without progress."""
        return drain(self.agent.call(request))

    def converse(self, request: Request[A], reply: Reply) -> Service[A]:
        """`call` for an operation that asks for credentials while it works: `reply` answers each question."""
        return (yield from self.agent.call(request, reply))

    def hold(self, artifacts: Sequence[WantedFile], chunk_bytes: int) -> Service[Hold]:
        """Become the only process that pushes files there, after waiting for any other; release the hold in the end."""
        return (yield from self.agent.hold(artifacts, chunk_bytes))


def _as_it_is(transport: Transport) -> Transport:
    return transport


@contextmanager
def connect(
    target: Target | str,
    prompt_secret: PromptSecret | None = None,
    *,
    limit_bytes_per_s: float | None = None,
    wrap: Callable[[Transport], Transport] = _as_it_is,
) -> Iterator[Device]:
    """Open a target by name or value; `prompt_secret` as in `open_transport`, `limit_bytes_per_s` as in `Device`.

    `wrap` wraps each connection of the device, the first one and those that it dials. Raises ConfigError for an unknown
    target or profile, DeviceError's children when the target can't be reached.
    """
    if isinstance(target, str):
        target = load_target(target)
    profile = load_profile(target.profile)
    ask = prompt_secret and remembered(prompt_secret)
    transport = open_transport(target, ask)
    try:
        yield Device(target, profile, wrap(transport), lambda: wrap(open_another(target, ask)), limit_bytes_per_s)
    finally:
        transport.close()


def check_profile(device: Device, probe: ProbeFacts) -> None:
    """Refuse a device that isn't of its profile's class: other CPU or system, or much less memory than the plan counts
    on.

    Raises ConfigError.
    """
    if obstacle := program_obstacle(probe):
        raise ConfigError(f"{device.target.name}: {obstacle.seen}", obstacle.hint)
    reason = misfit(device.profile, probe)
    if reason is not None:
        raise ConfigError(
            f"{device.target.name} (profile {device.profile.name}): {reason}",
            "set the right profile in the target's file; `edgephi profiles list` shows them",
        )


def identify(target: Target, prompt_secret: PromptSecret | None = None) -> Match:
    """Connect to a target, probe it and find the profile that suits it; the profile that it names is ignored.

    Raises ConfigError that names the candidates when no profile suits it, and the errors of `connect`.
    """
    # `connect` needs some profile, the probe needs none; `local` is always there.
    with connect(target.model_copy(update={"profile": "local"}), prompt_secret) as device:
        probe = device.ask(TakeProbe())
    profiles = [profile for profile in list_profiles() if isinstance(profile, Profile)]
    return propose_profile(probe, profiles, target.name)
