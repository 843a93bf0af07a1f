"""Facts about the machine that edgephi runs on, for profiles that say "auto". Standard library only."""

from __future__ import annotations

import os
import platform
import sys

# The names that systems and wheels use, to the two that profiles use.
ARCH_NAMES = {"amd64": "x86_64", "arm64": "aarch64", "x86_64": "x86_64", "aarch64": "aarch64"}


def arch() -> str:
    """`x86_64` or `aarch64`; another CPU's own name."""
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
