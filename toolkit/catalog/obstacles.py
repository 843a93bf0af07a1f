"""Facts of a device that make a deployment impossible, whatever the bundle; found before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.catalog.facts import ProbeFacts
from toolkit.localhost import ARCH_NAMES
from toolkit.units import size_text

# An installed runtime has 4,400 files and folders, pip's among them; a release has a dozen, and as many on their way.
RUNTIME_FILES, RELEASE_FILES = 5000, 50
# The agent tries to reserve so much.
RESERVED_BYTES = 500_000_000
_ELSEWHERE = "set install_root in the target's file to a folder on another disk"


@dataclass(frozen=True)
class Obstacle:
    """A finding, worded for people, and what to do about it."""

    seen: str
    hint: str


def program_obstacle(probe: ProbeFacts) -> Obstacle | None:
    """The obstacle that the device's Python is no program of 64 bits: no wheel of the runtime suits it, whatever the
    kernel.
    """
    if probe.python_bits is None or probe.python_bits >= 64:
        return None
    seen = f"its Python is a program of {probe.python_bits} bits"
    if probe.python_platform:
        seen += f" ({probe.python_platform})"
    if _kernel_of_64_bits(probe):
        seen += f" on a kernel of 64 bits ({probe.kernel_arch})"
    if probe.os == "windows":
        hint = "install a Python of 64 bits there: winget install Python.Python.3.12"
    elif "Raspberry Pi" in probe.board:
        hint = "install Raspberry Pi OS (64-bit) there; or set `python` in the target's file to a Python of 64 bits"
    else:
        hint = "install its system for 64 bits, or set `python` in the target's file to a Python of 64 bits there"
    return Obstacle(f"{seen}; the runtime's wheels are for 64 bits", hint)


def _kernel_of_64_bits(probe: ProbeFacts) -> bool:
    return (probe.kernel_arch or "").lower() in ARCH_NAMES


def root_obstacle(probe: ProbeFacts) -> Obstacle | None:
    """The obstacle that code can't be loaded from the install root, as from a disk that is mounted noexec."""
    if probe.root_exec_error is None:
        return None
    root, point = probe.install_root, probe.mount_point
    if point is None or "noexec" not in (probe.mount_options or "").split(","):
        return Obstacle(f"{root} lets no program be loaded: {probe.root_exec_error}", _ELSEWHERE)
    hint = f"on the device: sudo mount -o remount,exec {point}, and in /etc/fstab; or {_ELSEWHERE}"
    return Obstacle(f"{root} lets no program be loaded: {point} is mounted noexec", hint)


def room_obstacle(probe: ProbeFacts, *, files: int) -> Obstacle | None:
    """The obstacle that the install root takes no `files` more, or no more bytes though its disk has some."""
    root = probe.install_root
    if probe.free_files is not None and probe.free_files < files:
        seen = f"{root}: only {probe.free_files} more files can be made there (free inodes), and {files} are needed"
        hint = f"on the device: df -i {probe.mount_point or root} shows them; remove small files, or {_ELSEWHERE}"
        return Obstacle(seen, hint)
    if probe.root_room_error is not None:
        free, wanted = size_text(probe.free_disk_bytes), size_text(RESERVED_BYTES)
        seen = f"{root}: its disk has {free} free, and doesn't give this user {wanted} of it: {probe.root_room_error}"
        return Obstacle(seen, f"on the device: quota -s shows what this user may have; or {_ELSEWHERE}")
    return None
