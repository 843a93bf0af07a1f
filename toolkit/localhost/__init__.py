"""Facts about the machine that edgephi runs on, for profiles that say "auto" and for the limits of a build; and the
environment that other programs get, without secrets.

Standard library only.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from toolkit.localhost.groups import memory_limit, processor_quota, read, whole_processors

_SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET)_?KEY)(_|$)", re.IGNORECASE
)

# The names that systems and wheels use, to the two that profiles use.
ARCH_NAMES = {"amd64": "x86_64", "arm64": "aarch64", "x86_64": "x86_64", "aarch64": "aarch64"}


def arch() -> str:
    """`x86_64`, `aarch64`, or the system's name for another CPU."""
    name = platform.machine().lower()
    return ARCH_NAMES.get(name, name)


def system() -> str:
    """`linux`, `windows` or `darwin`."""
    return platform.system().lower()


def ram_bytes() -> int:
    """Installed memory."""
    if sys.platform == "win32":
        import ctypes

        kib = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kib))
        return kib.value * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit_bytes() -> int | None:
    """The most memory that control groups allow this process; None where that isn't less than the installed memory."""
    limit = memory_limit(Path("/"))
    return limit.limit_bytes if limit and limit.limit_bytes < ram_bytes() else None


def cores() -> int:
    """Whole processors that this process may use: a container, a quota or taskset may leave fewer than there are."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return whole_processors(affinity, processor_quota(Path("/")))


def platform_tags() -> list[str]:
    """Wheel platforms that this machine accepts, best first."""
    if system() == "windows":
        return ["win_arm64" if arch() == "aarch64" else "win_amd64"]
    if system() == "darwin":
        apple = "arm64" if arch() == "aarch64" else arch()
        return [f"macosx_{major}_0_{kind}" for major in range(15, 10, -1) for kind in (apple, "universal2")]
    return [f"{policy}_{arch()}" for policy in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")]


@dataclass(frozen=True)
class Memory:
    """Memory that a new process can have, in bytes: the available RAM, the free swap, and the rest of the tightest
    limit that a container or control group sets on both (None without one)."""

    available_bytes: int
    swap_free_bytes: int
    limit_left_bytes: int | None

    @property
    def total_bytes(self) -> int:
        free = self.available_bytes + self.swap_free_bytes
        return free if self.limit_left_bytes is None else min(free, self.limit_left_bytes)

    @property
    def limited(self) -> bool:
        return self.total_bytes < self.available_bytes + self.swap_free_bytes


def available_memory() -> Memory | None:
    """The memory that this machine has left now; None where the system doesn't tell (anything but Linux)."""
    fields = parse_meminfo(read(Path("/proc/meminfo")))
    if "MemAvailable" not in fields:
        return None
    limit = memory_limit(Path("/"))
    return Memory(fields["MemAvailable"], fields.get("SwapFree", 0), limit and limit.left_bytes)


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo to {name: bytes}."""
    matches = re.finditer(r"^(\S+):\s+(\d+) kB", text, re.MULTILINE)
    return {match[1]: int(match[2]) * 1024 for match in matches}


def without_secrets() -> dict[str, str]:
    """The environment without the variables whose names say that they are secrets: HF_TOKEN, AWS_SECRET_ACCESS_KEY.

    For programs that need no secrets: one that a target or a model's code has seen can't be taken back.
    """
    return {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
