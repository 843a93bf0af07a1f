"""The result of one check, and the judgements that need nothing but a probe's facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from toolkit.catalog import ProbeFacts, Profile, Target
from toolkit.catalog.obstacles import RUNTIME_FILES, program_obstacle, room_obstacle, root_obstacle
from toolkit.catalog.recognize import misfit, propose_profile, recognized
from toolkit.config import shown
from toolkit.errors import ConfigError
from toolkit.units import bytes_text, memory_text, size_text

# Clocks further apart make dates of releases and TLS certificates wrong.
CLOCK_SKEW_S = 60
# The runtime's wheels, unpacked, have about 0.2 GB; Phi-3-mini's bundles 2.0 to 2.7 GB.
LEAST_DISK_BYTES, PLENTY_DISK_BYTES = 500_000_000, 4_000_000_000
_TAKEN_DISK_BYTES = 3_000_000_000
# A push has three sessions open at once: for files, for its hold, and for a request.
PUSH_SESSIONS = 3
# The temperature that is warm before any work: boards begin to slow down at 80 to 85 °C.
WARM_C = 75.0
_POLICY_GLIBC = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
# The `powersave` of these drivers isn't the lowest frequency, but the usual way of choosing one.
_ADAPTIVE_DRIVERS = {"intel_pstate", "amd-pstate-epp", "amd-pstate"}
_SLOW_MODES = {"low-power", "quiet", "cool"}
_TO_CHANGE_IT = "set the right profile in the target's file"


@dataclass(frozen=True)
class Check:
    """The result of one check: `seen` tells the finding, `hint` the next step. A skipped check judges nothing."""

    name: str
    state: Literal["ok", "warn", "failed", "skipped"]
    seen: str
    hint: str | None = None


def ok(name: str, seen: str) -> Check:
    return Check(name, "ok", seen)


def skipped(name: str, why: str) -> Check:
    return Check(name, "skipped", why)


def sessions(at_once: int) -> Check:
    """Judge `at_once`, the number of sessions that one connection may have open, counted up to PUSH_SESSIONS."""
    if at_once >= PUSH_SESSIONS:
        return ok("sessions", f"{at_once} at once on a connection, which a push uses")
    hint = "on the device: MaxSessions 10 in /etc/ssh/sshd_config, then sudo systemctl reload ssh"
    seen = f"only {at_once} at once on a connection; each further one takes a connection of its own"
    return Check("sessions", "warn", seen, hint)


def shell(name: str, noise: Sequence[str]) -> Check:
    """Judge the shell that reads the commands there by `noise`, the lines that it or the server prints by itself."""
    if not noise:
        return ok("shell", name)
    hint = "it is left out, but disturbs scp and rsync: let it (~/.bashrc, /etc/motd) print only where somebody types"
    return Check("shell", "warn", f"{name}, which prints by itself: {noise[-1]}", hint)


def install_root(probe: ProbeFacts) -> Check:
    """Check that the root is writable, and private: anybody who can write there can run programs as this user."""
    name, root = "install root", probe.install_root
    if obstacle := root_obstacle(probe):
        return Check(name, "failed", obstacle.seen, obstacle.hint)
    if probe.root_error is not None:
        hint = "on the device: sudo chown -R $USER ROOT, chmod 700 ROOT; if the disk is read-only, dmesg says why"
        return Check(name, "failed", f"{root} can't be written to: {probe.root_error}", hint.replace("ROOT", root))
    if probe.root_mode is None:
        return ok(name, f"{root} can be written to")
    mode = int(probe.root_mode, 8)
    seen = f"{root} (mode {probe.root_mode})"
    if not probe.root_owned:
        return Check(name, "failed", f"{seen} belongs to somebody else", f"on the device: sudo chown $USER {root}")
    if mode & 0o022:
        return Check(name, "failed", f"{seen} can be written to by others", f"on the device: chmod 700 {root}")
    if mode & 0o044:
        return Check(name, "warn", f"{seen} can be read by others", f"on the device: chmod 700 {root}")
    return ok(name, seen)


def platform(probe: ProbeFacts) -> Check:
    """Check that the programs there are those that wheels are made for: 32 bits may run on a kernel of 64."""
    if obstacle := program_obstacle(probe):
        return Check("platform", "failed", obstacle.seen, obstacle.hint)
    return ok("platform", f"{probe.os}, {probe.arch}" + (f", {probe.python_bits} bits" if probe.python_bits else ""))


def processors(probe: ProbeFacts) -> Check:
    """Judge the quota that a container or a service sets on the processors' time."""
    name, quota = "processors", probe.cpu_quota
    if quota is None:
        return ok(name, f"{probe.cores} may be used")
    hint = "raise it (docker's --cpus, systemd's CPUQuota), or read the figures as those of so much of a device"
    threads = "1 thread" if probe.cores == 1 else f"{probe.cores} threads"
    seen = f"a quota allows {quota:.3g} of them at once; inference uses {threads} unless the profile says otherwise"
    return Check(name, "warn", seen, hint)


def pip(target: Target, probe: ProbeFacts) -> Check:
    if probe.has_ensurepip:
        return ok("pip", "this Python can make virtual environments with pip")
    hint = "wheels are pushed from here then; on the device: sudo apt-get install python3-venv"
    return Check("pip", "warn", f"'{target.python}' can't make virtual environments with pip (no ensurepip)", hint)


def needed_glibc(tags: Iterable[str]) -> tuple[int, int] | None:
    """The oldest glibc that the wheels of all these platform tags run with; None when they aren't for glibc."""
    found = []
    for tag in tags:
        policy = tag.rpartition("_")[0] if tag.endswith("_aarch64") else tag.removesuffix("_x86_64")
        match = re.fullmatch(r"manylinux_(\d+)_(\d+)", policy)
        if match:
            found.append((int(match[1]), int(match[2])))
        elif policy in _POLICY_GLIBC:
            found.append(_POLICY_GLIBC[policy])
    return max(found, default=None)


def glibc(profile: Profile, probe: ProbeFacts) -> Check:
    needed = needed_glibc(profile.runtime.platform_tags)
    if needed is None or probe.os != "linux":
        return skipped("glibc", "the profile's wheels don't need it")
    wanted = f"{needed[0]}.{needed[1]}"
    if probe.glibc is None:
        hint = "the runtime's wheels need a system with glibc; Alpine and the like have musl"
        return Check("glibc", "failed", f"none found ({probe.libc or 'unknown C library'})", hint)
    found = tuple(int(part) for part in probe.glibc.split("."))
    if found < needed:
        hint = f"install a newer system there (Debian 12, Ubuntu 24.04), or build wheels for glibc {probe.glibc}"
        return Check("glibc", "failed", f"{probe.glibc} is older than {wanted}, which the wheels need", hint)
    return ok("glibc", f"{probe.glibc}, the wheels need {wanted}")


def memory(profile: Profile, probe: ProbeFacts) -> Check:
    """Compare the memory that is free now with the memory that the profile leaves to a model; a limit on the processes
    there with what the profile counts on.
    """
    total, available = probe.ram_bytes, probe.mem_available_bytes
    planned = probe.room_bytes(profile.hardware.ram_reserved_bytes)
    if not total or available is None or planned is None:
        return skipped("memory", "the device doesn't tell")
    limit, counted = probe.memory_limit_bytes, profile.hardware.room_bytes
    if limit is not None and limit < counted:
        seen = f"a limit of {memory_text(limit)} on this user's processes, {memory_text(available)} of it left"
        hint = (
            "raise the limit (docker's --memory, systemd's MemoryMax, ulimit -v), "
            f'or write it into the profile: memory_limit = "{bytes_text(limit)}"'
        )
        return Check("memory", "warn", f"{seen}; the profile counts on {memory_text(counted)}", hint)
    seen = f"{memory_text(available)} of {memory_text(total)} available"
    if available < planned:
        hint = "on the device: end what else runs (ps aux --sort=-rss | head), or raise ram_reserved in the profile"
        return Check("memory", "warn", f"{seen}, the profile counts on {memory_text(planned)}", hint)
    return ok("memory", seen)


def disk(probe: ProbeFacts) -> Check:
    if obstacle := room_obstacle(probe, files=RUNTIME_FILES):
        return Check("disk", "failed", obstacle.seen, obstacle.hint)
    free = probe.free_disk_bytes
    where = ", ".join(filter(None, (probe.storage, probe.storage_device, probe.file_system)))
    seen = f"{size_text(free)} free{f' ({where})' if where else ''}"
    hint = "free some space there, or set install_root in the target's file to a folder on a larger disk"
    if free < LEAST_DISK_BYTES:
        return Check("disk", "failed", f"{seen}: not even the runtime fits", hint)
    if free < PLENTY_DISK_BYTES:
        taken = size_text(_TAKEN_DISK_BYTES)
        return Check("disk", "warn", f"{seen}; the runtime and a bundle of Phi-3-mini take {taken}", hint)
    return ok("disk", seen)


def clock(skew_s: float) -> Check:
    """Judge `skew_s`, the device's clock minus this machine's."""
    if abs(skew_s) <= CLOCK_SKEW_S:
        return ok("clock", f"{abs(skew_s):.0f} s apart")
    seen = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} this machine"
    return Check("clock", "warn", seen, "on the device: sudo timedatectl set-ntp true")


def governor(probe: ProbeFacts) -> Check:
    found = probe.governor
    if found is None:
        return skipped("governor", "the device doesn't tell")
    if found == "powersave" and probe.governor_driver not in _ADAPTIVE_DRIVERS:
        hint = "on the device: echo ondemand | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        return Check("governor", "warn", "powersave: the cores stay at their lowest frequency", hint)
    return ok("governor", found)


def power_mode(probe: ProbeFacts) -> Check:
    found, modes = probe.power_mode, probe.power_modes
    if found is None:
        return skipped("power mode", "the device has none, or doesn't tell")
    best = next((name for name in modes if name.startswith("MAXN")), None)
    if best is not None and not found.startswith("MAXN"):
        hint = f"on the device: sudo nvpmodel -m {modes[best]} (fast), sudo nvpmodel -m {modes.get(found, 'ID')} (back)"
        return Check("power mode", "warn", f"{found}: {best} is faster", hint)
    if found in _SLOW_MODES:
        hint = "on the device: powerprofilesctl set performance"
        return Check("power mode", "warn", f"{found}: measurements will be slow", hint)
    return ok("power mode", found)


def temperature(probe: ProbeFacts) -> Check:
    found = probe.temp_c
    if found is None:
        return skipped("temperature", "the device doesn't tell")
    if found >= WARM_C:
        hint = "wait until it has cooled down, and give it a fan: it soon becomes slower"
        return Check("temperature", "warn", f"{found:.0f} °C before any work", hint)
    return ok("temperature", f"{found:.0f} °C")


def throttling(probe: ProbeFacts) -> Check:
    flags = probe.throttled
    if flags is None:
        # Only members of the group video may ask a Raspberry Pi's firmware.
        hint = "on the device: sudo usermod -aG video $USER" if "Raspberry Pi" in probe.board else None
        return Check("throttling", "skipped", "the device doesn't tell", hint)
    raised = [name.replace("_", " ") for name, on in flags.items() if on]
    if not raised:
        return ok("throttling", "none since it was started")
    supply = "a power supply that is strong enough (5 V 3 A for a Pi 4, 5 V 5 A for a Pi 5)"
    remedy = supply if any(name.startswith("under voltage") for name in raised) else "a fan or a heat sink"
    return Check("throttling", "warn", ", ".join(raised), f"it needs {remedy}; sudo reboot clears what has been")


def profile_fits(target: Target, profile: Profile, probe: ProbeFacts, profiles: Sequence[Profile]) -> Check:
    """Check that the profile can serve this device, and that it is meant for it."""
    if program_obstacle(probe):
        return skipped("profile", "not looked at: platform failed")
    reason, knows = misfit(profile, probe), profile.hardware.recognized_by
    if reason is None and (knows is None or recognized(profile, probe)):
        return ok("profile", f"{profile.name} fits {probe.board}")
    state: Literal["warn", "failed"] = "failed" if reason else "warn"
    seen = reason or f"{profile.name} is for {' or '.join(knows or ())}, the device is {probe.board}"
    return Check("profile", state, seen, _better_profile(target, probe, profiles))


def _better_profile(target: Target, probe: ProbeFacts, profiles: Sequence[Profile]) -> str:
    file = shown(target.path) if target.path else "the target's file"
    try:
        best = propose_profile(probe, profiles, target.name)
    except ConfigError as exc:
        return exc.hint or _TO_CHANGE_IT
    return f'in {file}: profile = "{best.profile.name}" ({"; ".join(best.reasons)})'
