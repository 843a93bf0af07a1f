"""The choice of the profile that suits a device, by the facts that its probe found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.catalog.facts import ProbeFacts
from toolkit.catalog.obstacles import program_obstacle
from toolkit.catalog.profile import Profile
from toolkit.errors import ConfigError
from toolkit.localhost import ARCH_NAMES
from toolkit.units import memory_text

# A board's firmware and GPU keep a part of the memory that the data sheet counts.
_RAM_SHARE = 0.8
# Over half as much memory again as the profile counts on is worth a word to the user.
_MUCH_MORE_RAM = 1.5
# The profile of the machine that edgephi runs on: its figures of memory and cores are true nowhere else.
_HERE = "local"


@dataclass(frozen=True)
class Match:
    """The profile that suits a device best, and the reasons, worded for people."""

    profile: Profile
    reasons: tuple[str, ...]


def misfit(profile: Profile, probe: ProbeFacts) -> str | None:
    """The reason why a profile can't serve the probed device (other CPU or system, too little memory), or None."""
    hardware = profile.hardware
    if obstacle := program_obstacle(probe):
        return obstacle.seen
    if probe.arch != hardware.arch:
        kernel = (probe.kernel_arch or "").lower()
        if ARCH_NAMES.get(kernel) == hardware.arch:
            return f"its Python is for {probe.arch} ({probe.python_platform}), the profile says {hardware.arch}"
        return f"the device is {probe.arch}, the profile says {hardware.arch}"
    if probe.os != hardware.os:
        return f"the device runs {probe.os}, the profile says {hardware.os}"
    if probe.ram_bytes and probe.ram_bytes < _RAM_SHARE * hardware.ram_bytes:
        return (
            f"the device has {memory_text(probe.ram_bytes)} of memory, "
            f"the profile says {memory_text(hardware.ram_bytes)}"
        )
    return None


def recognized(profile: Profile, probe: ProbeFacts) -> str | None:
    """The fact by which a profile knows the device for one of its own; None when there is none."""
    facts = [fact for fact in (probe.board, probe.soc, probe.cpu, *probe.accelerators) if fact]
    for text in profile.hardware.recognized_by or ():
        for fact in facts:
            if text.lower() in fact.lower():
                return fact
    return None


def propose_profile(probe: ProbeFacts, profiles: Sequence[Profile], name: str) -> Match:
    """The best of `profiles` for the device that answered `probe`; `name` is what messages call it.

    A profile that recognizes the device comes before one for any device of its kind; then comes the one that counts on
    the most memory (on the least where the probe doesn't tell the device's), and a profile before those that extend it.
    Profile `local` is never proposed. Raises ConfigError that names the candidates and the obstacle of each.
    """
    if obstacle := program_obstacle(probe):
        raise ConfigError(f"{name}: {obstacle.seen}", obstacle.hint)
    found = [profile for profile in profiles if profile.name != _HERE]
    obstacles = {profile.name: _obstacle(profile, probe) for profile in found}
    fitting = [profile for profile in found if obstacles[profile.name] is None]
    if not fitting:
        raise _nothing_fits(probe, found, obstacles, name)
    names = {profile.name for profile in fitting}
    best = max(
        fitting,
        key=lambda profile: (
            profile.hardware.recognized_by is not None,
            profile.hardware.ram_bytes * (1 if probe.ram_bytes else -1),
            profile.extends not in names,
        ),
    )
    reasons = _reasons(best, probe)
    if recognized(best, probe) is None:
        reasons += [f"not {p.name}: {obstacles[p.name]}" for p in found if recognized(p, probe)]
    return Match(best, tuple(reasons))


def _obstacle(profile: Profile, probe: ProbeFacts) -> str | None:
    reason = misfit(profile, probe)
    if reason is None and profile.hardware.recognized_by is not None and recognized(profile, probe) is None:
        return f"nothing there is called {' or '.join(map(repr, profile.hardware.recognized_by))}"
    return reason


def _reasons(profile: Profile, probe: ProbeFacts) -> list[str]:
    hardware = profile.hardware
    fact = recognized(profile, probe)
    reasons = [f"recognized by '{fact}'" if fact else f"for any {hardware.arch} device with {hardware.os}"]
    ram = probe.ram_bytes
    if ram:
        reasons.append(f"{memory_text(ram)} of memory, the profile counts on {memory_text(hardware.ram_bytes)}")
        if ram > _MUCH_MORE_RAM * hardware.ram_bytes:
            reasons.append("a profile of your own could count on all of the memory")
    if fact is None and probe.accelerators:
        reasons.append(f"what it doesn't use: {', '.join(probe.accelerators)}")
    return reasons


def _nothing_fits(
    probe: ProbeFacts, profiles: Sequence[Profile], obstacles: Mapping[str, str | None], name: str
) -> ConfigError:
    own = [profile for profile in profiles if recognized(profile, probe)]
    like = [p for p in profiles if (p.hardware.arch, p.hardware.os) == (probe.arch, probe.os)]
    candidates = own or like or list(profiles)
    ram = f", {memory_text(probe.ram_bytes)}" if probe.ram_bytes else ""
    lines = [f"{name}: no profile fits {probe.board} ({probe.arch}, {probe.os}{ram})"]
    lines += [f"  {profile.name}: {obstacles[profile.name]}" for profile in candidates]
    nearest = min(candidates, key=lambda p: p.hardware.ram_bytes).name if candidates else "local"
    return ConfigError(
        "\n".join(lines),
        f"name one with --profile, or start your own: edgephi profiles show {nearest} --toml > profiles/NAME.toml",
    )
