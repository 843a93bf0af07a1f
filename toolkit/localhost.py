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

_SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET)_?KEY)(_|$)", re.IGNORECASE
)

# The names that systems and wheels use, to the two that profiles use.
ARCH_NAMES = {"amd64": "x86_64", "arm64": "aarch64", "x86_64": "x86_64", "aarch64": "aarch64"}

# Version 1 of control groups says "no limit" with the largest number of whole pages.
_NO_LIMIT = 1 << 62


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


def cores() -> int:
    """Cores that this process may use: a container or taskset may leave fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    fields = parse_meminfo(_read(Path("/proc/meminfo")))
    if "MemAvailable" not in fields:
        return None
    return Memory(fields["MemAvailable"], fields.get("SwapFree", 0), cgroup_left_bytes(Path("/")))


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo to {name: bytes}."""
    matches = re.finditer(r"^(\S+):\s+(\d+) kB", text, re.MULTILINE)
    return {match[1]: int(match[2]) * 1024 for match in matches}


def parse_cgroup(text: str) -> tuple[str | None, str | None]:
    """/proc/self/cgroup to the paths of this process's memory group in version 1 and in version 2."""
    first = second = None
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            first = path
        elif number == "0" and not controllers:
            second = path
    return first, second


def parse_limit(text: str) -> int | None:
    """A limit of a control group in bytes; None for `max` and for version 1's number for no limit."""
    digits = text.strip()
    return int(digits) if digits.isdecimal() and int(digits) < _NO_LIMIT else None


def parse_reclaimable(text: str) -> int:
    """memory.stat to the bytes of page cache that the kernel gives up before it kills: files read once, and those read
    again, such as a model that was hashed before it is built."""
    found = {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE)}
    return sum(found.get(f"total_{name}", found.get(name, 0)) for name in ("inactive_file", "active_file"))


def cgroup_left_bytes(root: Path) -> int | None:
    """The rest of the tightest limit on this process's memory groups; None without any limit.

    `root` is the folder that holds `proc` and `sys`.
    """
    first, second = parse_cgroup(_read(root / "proc/self/cgroup"))
    found: list[int] = []
    for mount, path, limit_name, usage_name in (
        (root / "sys/fs/cgroup/memory", first, "memory.limit_in_bytes", "memory.usage_in_bytes"),
        (root / "sys/fs/cgroup", second, "memory.max", "memory.current"),
    ):
        if path is None:
            continue
        # Inside a container the path may be the host's: then only the container's own group is mounted, at the top.
        own = mount / path.lstrip("/")
        for folder in (own, *own.parents):
            limit = parse_limit(_read(folder / limit_name))
            if limit is not None:
                used = int(_read(folder / usage_name).strip() or 0) - parse_reclaimable(_read(folder / "memory.stat"))
                found.append(max(0, limit - max(0, used)))
            if folder == mount:
                break
    return min(found, default=None)


def _read(path: Path) -> str:
    """A file's text, '' when it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def without_secrets() -> dict[str, str]:
    """The environment without the variables whose names say that they are secrets: HF_TOKEN, AWS_SECRET_ACCESS_KEY.

    For programs that need no secrets: one that a target or a model's code has seen can't be taken back.
    """
    return {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
