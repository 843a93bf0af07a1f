"""The probe: the facts about this device."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import struct
import sys
import sysconfig
from pathlib import Path
from typing import Any

from .condition import condition, cpu_quota, memory_available_bytes, own_memory_limit, usable_cores
from .layout import ROOT
from .parsers import (
    mount_of,
    parse_accel_uevent,
    parse_compatible,
    parse_cpuinfo,
    parse_cuda_version,
    parse_glibc,
    parse_jetpack,
    parse_meminfo,
    parse_mountinfo,
    parse_nvidia_smi,
    parse_os_release,
    parse_tegra_release,
    parse_windows,
    program_arch,
    storage_kind,
)
from .reading import read_text, run_tool, system_path
from .root import room, root_access

# PowerShell is started once for all the facts that Windows tells only there: a start takes a second or two.
WINDOWS_TIMEOUT_S = 40
WINDOWS_FACTS = """
$ErrorActionPreference = 'SilentlyContinue'; $ProgressPreference = 'SilentlyContinue'
[Console]::OutputEncoding = [Text.Encoding]::UTF8
$computer = Get-CimInstance Win32_ComputerSystem
$system = Get-CimInstance Win32_OperatingSystem
$disk = Get-Partition -DriveLetter '%s' | Get-Disk
@{
  manufacturer = "$($computer.Manufacturer)"; model = "$($computer.Model)"; ram = $computer.TotalPhysicalMemory
  available_kib = $system.FreePhysicalMemory; system = "$($system.Caption)"; version = "$($system.Version)"
  cpu = "$(@(Get-CimInstance Win32_Processor)[0].Name)"
  npus = @(Get-PnpDevice -PresentOnly -Class ComputeAccelerator | ForEach-Object {
    @{ name = "$($_.FriendlyName)"; id = "$($_.InstanceId)"; status = "$($_.Status)" } })
  bus = "$($disk.BusType)"; disk = "$($disk.FriendlyName)"
} | ConvertTo-Json -Compress -Depth 4
"""


def board_model() -> str:
    return (
        read_text("/sys/firmware/devicetree/base/model")
        or read_text("/sys/devices/virtual/dmi/id/product_name")
        or platform.node()
    )


def emulated() -> str | None:
    """The emulator that this device runs in, and the use of its figures; None on hardware."""
    return read_text("/run/edgephi/emulated") or None


def soc() -> str | None:
    """The system on a chip, where a device tree names it."""
    return parse_compatible(read_text("/sys/firmware/devicetree/base/compatible"))


def glibc_version() -> str | None:
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return None
    return parse_glibc(text)


def jetson() -> dict[str, str | None] | None:
    """The versions of L4T and JetPack; None on a device that isn't a Jetson."""
    l4t = parse_tegra_release(read_text("/etc/nv_tegra_release"))
    if l4t is None:
        return None
    package = run_tool("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack")
    return {"l4t": l4t, "jetpack": parse_jetpack(package, l4t)}


def accelerators(board: dict[str, str | None] | None, npus: list[str]) -> list[str]:
    """Accelerators whose drivers show themselves, each as `kind: name`.

    `board` is the answer of `jetson`, `npus` are the names that Windows gave.
    """
    found = []
    if board is not None:
        found.append(f"jetson: L4T {board['l4t']}, JetPack {board['jetpack'] or 'unknown'}")
    query = "--query-gpu=name,driver_version,memory.total"
    found += ["cuda: " + name for name in parse_nvidia_smi(run_tool("nvidia-smi", query, "--format=csv,noheader"))]
    for node in sorted(system_path("/sys/class/accel").glob("accel*")):
        name = parse_accel_uevent(read_text(node / "device" / "uevent"))
        found.append("npu: " + (name or f"/dev/accel/{node.name}"))
    # Qualcomm's laptops reach their NPU through remote calls to its processor, not through /dev/accel.
    if system_path("/dev/fastrpc-cdsp").exists():
        found.append("npu: Qualcomm Hexagon NPU (fastrpc-cdsp)")
    return found + ["npu: " + name for name in npus]


def storage() -> dict[str, str | None]:
    """The disk that holds the install root: its kind, its name, its file system, and where and how that is mounted;
    None for each that nothing tells.
    """
    mount = mount_of(parse_mountinfo(read_text("/proc/self/mountinfo")), str(ROOT))
    if mount is None:
        return dict.fromkeys(("storage", "storage_device", "file_system", "mount_point", "mount_options"))
    disk, file_system = disk_behind(mount), mount["file_system"]
    # Without a disk the file system's name tells that it is of the network, in memory, or laid over other folders.
    kind = storage_kind(disk.name, str(disk), read_text(disk / "device" / "type")) if disk else file_system
    return {
        "storage": kind,
        "storage_device": disk.name if disk else None,
        "file_system": file_system,
        "mount_point": mount["mount_point"],
        "mount_options": mount["options"] or None,
    }


def disk_behind(mount: dict[str, str]) -> Path | None:
    """The folder in /sys of the disk that a mount's device is a part of, below mappers and RAIDs."""
    device = system_path("/sys/dev/block") / mount["number"]
    if not device.exists():  # btrfs has numbers of its own; its source is the device
        source = os.path.realpath(system_path(mount["source"]))
        device = system_path("/sys/class/block") / Path(source).name
    for _ in range(8):
        if not device.exists():
            return None
        device = device.resolve()
        if (device / "partition").exists():
            device = device.parent
        below = sorted((device / "slaves").glob("*"))
        if not below:
            return device
        device = below[0]
    return None


def windows_facts() -> dict[str, Any]:
    """The facts that only CIM and Plug and Play tell; {} where PowerShell can't be asked."""
    if sys.platform != "win32":
        return {}
    import base64

    drive = ROOT.drive[:1] if re.match(r"[A-Za-z]:", ROOT.drive) else "C"
    # Encoded, so that no shell reads it.
    script = base64.b64encode((WINDOWS_FACTS % drive).encode("utf-16-le")).decode("ascii")
    argv = ("powershell", "-NoProfile", "-NonInteractive", "-EncodedCommand", script)
    return parse_windows(run_tool(*argv, timeout_s=WINDOWS_TIMEOUT_S))


def memory() -> dict[str, int | None]:
    """The device's memory, and the limit that leaves less of it to the processes here; None without one."""
    total, limit = total_memory_bytes(), own_memory_limit()
    less = limit is not None and (total is None or limit.limit_bytes < total)
    return {"ram_bytes": total, "memory_limit_bytes": limit.limit_bytes if limit and less else None}


def python_facts() -> dict[str, Any]:
    """The Python that runs this, and will make the runtime's: its bits decide about wheels, not the kernel's."""
    return {
        "python": platform.python_version(),
        "python_bits": struct.calcsize("P") * 8,
        "python_platform": sysconfig.get_config_var("MULTIARCH") or sysconfig.get_platform(),
        "has_ensurepip": importlib.util.find_spec("ensurepip") is not None,
    }


def total_memory_bytes() -> int | None:
    total = parse_meminfo(read_text("/proc/meminfo")).get("MemTotal")
    if total is None and hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total


def op_probe(_request: dict[str, Any]) -> dict[str, Any]:
    """Collect the facts about the device, without importing the runtime. A fact that nothing tells is None or empty."""
    cpu = parse_cpuinfo(read_text("/proc/cpuinfo"))
    libc, libc_version = platform.libc_ver()
    board, windows, disk = jetson(), windows_facts(), storage()
    facts: dict[str, Any] = {
        "board": board_model(),
        "soc": soc(),
        "arch": program_arch(platform.machine(), sysconfig.get_platform(), struct.calcsize("P") * 8),
        "kernel_arch": platform.machine(),
        "os": platform.system().lower(),
        "os_name": parse_os_release(read_text("/etc/os-release")) or platform.platform(),
        "kernel": platform.release(),
        "libc": f"{libc} {libc_version}".strip(),
        "glibc": glibc_version(),
        "cpu": cpu["name"] or platform.processor() or None,
        "isa": cpu["features"],
        "cores": usable_cores(),
        "cpu_quota": cpu_quota(),
        **memory(),
        "mem_available_bytes": memory_available_bytes(),
        **room(ROOT),
        **disk,
        **python_facts(),
        "jetson": board,
        "cuda": parse_cuda_version(read_text("/usr/local/cuda/version.json")),
        "accelerators": accelerators(board, windows.pop("npus", [])),
        **condition(board),
        "emulated": emulated(),
        "install_root": str(ROOT),
        **root_access(ROOT, disk["file_system"]),
    }
    return dict(facts, **{name: value for name, value in windows.items() if value is not None})
