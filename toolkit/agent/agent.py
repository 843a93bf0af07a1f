#!/usr/bin/env python3
"""edgephi's agent: everything that happens on a target. One file, standard library only, Python 3.9 syntax.

It is installed as <install_root>/agent/agent-<hash>.py and works on the install root it lies in:

    blobs/sha256/<hash>     verified files, read-only   incoming/<hash>.part   files on their way
    releases/<bundle-id>/   hard links into blobs       runtimes/<lock>/       virtual environments
    current.json            the pointer                 lock                   held while something changes

Protocol: constant argv (`python -u agent.py`), one JSON request as the first line of stdin, JSON lines on
stdout, each with `protocol: 1` and one of `event`, `result`, `error`. Logs go to stderr. Operations that need
the runtime run in a fresh process of the runtime's own Python. Times are raw nanoseconds; statistics are the
host's work.

By hand, on the device, without any host:

    echo '{"protocol": 1, "op": "releases"}' | python3 ~/.edgephi/agent/agent-*.py
    echo '{"protocol": 1, "op": "rollback"}' | python3 ~/.edgephi/agent/agent-*.py
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROTOCOL = 1
ROOT = Path(__file__).resolve().parent.parent
SYSTEM = Path("/")  # what holds etc, proc and sys
POINTER = ROOT / "current.json"
BLOBS = ROOT / "blobs" / "sha256"
INCOMING = ROOT / "incoming"
RELEASES = ROOT / "releases"
RUNTIMES = ROOT / "runtimes"
HEX64 = re.compile(r"[0-9a-f]{64}\Z")
WHEEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+!-]*\.whl\Z")
LOCK_NAME = re.compile(r"[0-9a-f]{16}\Z")
CHILD_REQUEST = "EDGEPHI_AGENT_REQUEST_FILE"
HISTORY_LENGTH = 10
LOCK_POLL_S = 0.1
WAITING_S = 5.0
LOCKED_BYTE = 1 << 30
# What arrived and wasn't taken for so long is nobody's push any more.
STALE_S = 24 * 3600.0
SIGKILL = 9  # Windows' signal module hasn't got it
CHUNK = 1 << 20
LOGIT_ROWS = 64
# More than caches hold, and a length that the best of several passes is stable in.
MEASURED_BYTES = 256 << 20
MEASURED_S = 0.5
ISA_FEATURES = {
    "neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme", "fphp",
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16",
    "amx_int8", "amx_bf16",
}  # fmt: skip
PCI_VENDORS = {"1022": "AMD", "10de": "NVIDIA", "17cb": "Qualcomm", "8086": "Intel"}
# JetPack's first number by L4T's: for boards without the package that says it exactly.
JETPACKS = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}
# One start of PowerShell for all that Windows tells only there: it takes a second or two.
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


class AgentFailure(Exception):
    """A failure the host can word: a code from a short list, what happened, what to do."""

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


def emit(kind: str, payload: Any) -> None:
    sys.stdout.write(json.dumps({"protocol": PROTOCOL, kind: payload}) + "\n")
    sys.stdout.flush()


def progress(label: str, done: int, total: int, unit: str = "steps") -> None:
    emit("event", {"type": "progress", "label": label, "done": done, "total": total, "unit": unit})


# --- facts about the device: pure parsers, then the readers that feed them ----------------------------------


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo to {name: bytes}."""
    fields = {}
    for line in text.splitlines():
        match = re.match(r"(\S+):\s+(\d+)( kB)?", line)
        if match:
            fields[match.group(1)] = int(match.group(2)) * (1024 if match.group(3) else 1)
    return fields


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """/proc/cpuinfo to the CPU's name and those of its instruction set features that matter here."""
    name: str | None = None
    features: set[str] = set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        key, value = key.strip().lower(), value.strip()
        if key in ("flags", "features"):
            features.update(value.split())
        elif key == "model name" and value:
            name = name or value
    return {"name": name, "features": sorted(features & ISA_FEATURES)}


def parse_os_release(text: str) -> str | None:
    """/etc/os-release to its PRETTY_NAME."""
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)"?', text, re.MULTILINE)
    return match.group(1) if match else None


def parse_throttled(text: str) -> dict[str, bool] | None:
    """`vcgencmd get_throttled` to its bits, e.g. {'under_voltage_now': False, ...}; None when it isn't one.

    Bits 0-3 are now, 16-19 since boot: under-voltage, frequency cap, throttled, soft temperature limit.
    """
    match = re.match(r"throttled=(0x[0-9a-fA-F]+)", text.strip())
    if not match:
        return None
    bits = int(match.group(1), 16)
    names = ("under_voltage", "frequency_capped", "throttled", "soft_temp_limit")
    flags = {}
    for index, name in enumerate(names):
        flags[name + "_now"] = bool(bits >> index & 1)
        flags[name + "_since_boot"] = bool(bits >> (16 + index) & 1)
    return flags


def parse_compatible(text: str) -> str | None:
    """The device tree's `compatible`, its entries ended by NUL, to the SoC: the last one is the most general."""
    entries = [entry for entry in text.split("\0") if "," in entry]
    return entries[-1].partition(",")[2] if entries else None


def parse_glibc(text: str) -> str | None:
    """`glibc 2.36` to its version; None for another C library."""
    match = re.match(r"glibc (\d+\.\d+)", text)
    return match.group(1) if match else None


def parse_tegra_release(text: str) -> str | None:
    """/etc/nv_tegra_release to the version of L4T, e.g. 36.4.3."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{match.group(1)}.{match.group(2)}" if match else None


def parse_jetpack(package: str, l4t: str) -> str | None:
    """The version of the package nvidia-jetpack, as dpkg prints it, to that of JetPack, e.g. 6.2.1.

    Without the package only the first number, by the version of L4T.
    """
    match = re.match(r"\d+(\.\d+)*", package.strip())
    return match.group(0) if match else JETPACKS.get(l4t.partition(".")[0])


def parse_nvpmodel(text: str) -> str | None:
    """`nvpmodel -q` to the name of the power mode, e.g. MAXN; warnings may stand before it."""
    match = re.search(r"NV Power Mode: *(\S+)", text)
    return match.group(1) if match else None


def parse_nvpmodel_conf(text: str) -> dict[str, int]:
    """/etc/nvpmodel.conf to the numbers of the power modes, by name."""
    modes = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", text, re.MULTILINE)
    return {name: int(number) for number, name in modes}


def parse_tegrastats(line: str) -> dict[str, Any]:
    """A line of tegrastats to temperatures in degrees Celsius and the power of rails in mW, now, by name.

    Sensors of parts that are switched off read -256 degrees, unconnected rails are called NC: both are left out.
    """
    temperatures = {name: float(value) for name, value in re.findall(r"([A-Za-z]\w*)@(-?[\d.]+)C\b", line)}
    rails = re.findall(r"\b([A-Z]\w*) (\d+)mW", line)
    return {
        "temp_c": {name: value for name, value in temperatures.items() if value > -200},
        "rails_mw": {name: int(value) for name, value in rails if name != "NC"},
    }


def parse_nvidia_smi(text: str) -> list[str]:
    """`nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader` to one text for each GPU.

    A GPU that shares the system's memory has `[N/A]` there.
    """
    found = []
    for line in text.splitlines():
        name, _, rest = line.partition(", ")
        driver, _, memory = rest.partition(", ")
        facts = [f"driver {driver}" if driver else "", memory if memory[:1].isdigit() else ""]
        known = ", ".join(fact for fact in facts if fact)
        if name:
            found.append(f"{name} ({known})" if known else name)
    return found


def parse_cuda_version(text: str) -> str | None:
    """/usr/local/cuda/version.json to the version of the CUDA toolkit."""
    try:
        version: str = json.loads(text)["cuda"]["version"]
    except (ValueError, KeyError, TypeError):
        return None
    return version


def parse_accel_uevent(text: str) -> str | None:
    """A PCI device's uevent to a text like `Intel NPU (intel_vpu, 8086:643e)`; None when it names no driver."""
    facts = dict(line.partition("=")[::2] for line in text.splitlines())
    if not facts.get("DRIVER"):
        return None
    pci = facts.get("PCI_ID", "").lower()
    vendor = PCI_VENDORS.get(pci[:4])
    return f"{vendor + ' ' if vendor else ''}NPU ({facts['DRIVER']}{', ' + pci if pci else ''})"


def parse_mountinfo(text: str) -> list[dict[str, str]]:
    """/proc/self/mountinfo: number of the device, where it is mounted, file system and source, in order of mounting."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if separator and len(left) >= 5 and len(right) >= 2:
            # Blanks and the like stand as octal numbers.
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), left[4])
            mounts.append({"number": left[2], "mount_point": point, "file_system": right[0], "source": right[1]})
    return mounts


def mount_of(mounts: list[dict[str, str]], path: str) -> dict[str, str] | None:
    """The mount that a path lies on: the deepest one, the last where several lie over each other."""
    found = None
    for mount in mounts:
        point = mount["mount_point"].rstrip("/")
        inside = path == point or path.startswith(point + "/")
        if inside and (found is None or len(point) >= len(found["mount_point"].rstrip("/"))):
            found = mount
    return found


def storage_kind(disk: str, device_path: str, mmc_type: str = "") -> str:
    """What a block device is, by its name, its path in /sys and, of an MMC one, the card's `type`."""
    if disk.startswith("mmcblk"):
        return "eMMC" if mmc_type == "MMC" else "SD card"
    if disk.startswith("nvme"):
        return "NVMe"
    for part, kind in (("/usb", "USB"), ("/ata", "SATA"), ("ufs", "UFS"), ("/virtio", "virtual")):
        if part in device_path:
            return kind
    return "virtual" if disk.startswith(("vd", "xvd", "loop", "zram", "ram")) else "other"


def parse_windows(text: str) -> dict[str, Any]:
    """What WINDOWS_FACTS prints to facts by the names that a probe gives them; {} when it isn't that."""
    try:
        told = json.loads(text.lstrip("\ufeff"))
        kib = told["available_kib"]
        board = " ".join(word for word in (told["manufacturer"], told["model"]) if word)
        npus = [npu_name(npu["name"], npu["id"]) for npu in told["npus"] if npu["status"] in ("OK", "")]
        return {
            "board": board or None,
            "os_name": f"{told['system']} {told['version']}".strip() or None,
            "cpu": " ".join(told["cpu"].split()) or None,
            "ram_bytes": told["ram"],
            "mem_available_bytes": kib * 1024 if kib else None,
            "storage": told["bus"] or None,
            "storage_device": told["disk"] or None,
            "npus": npus,
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def npu_name(name: str, instance: str) -> str:
    """A device's name in Windows with its maker before it where that is missing: AMD's doesn't say whose it is."""
    match = re.match(r"PCI\\VEN_([0-9A-F]{4})", instance, re.IGNORECASE)
    vendor = PCI_VENDORS.get(match.group(1).lower(), "") if match else ""
    return name if not vendor or vendor.lower() in name.lower() else f"{vendor} {name}"


def parse_powercfg(text: str) -> str | None:
    """`powercfg /getactivescheme` to the scheme's name, which stands in brackets whatever the language."""
    match = re.search(r"\(([^()]+)\)\s*\Z", text)
    return match.group(1) if match else None


def parse_status_kib(text: str, key: str) -> int | None:
    """A `kB` field of /proc/<pid>/status or smaps_rollup, in bytes; None when it isn't there."""
    match = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def read_text(path: str | Path) -> str:
    """A file's text; '' when it can't be read. Text names a file of the system. Device-tree strings end in NUL."""
    file = path if isinstance(path, Path) else SYSTEM / path.lstrip("/")
    try:
        return file.read_text(encoding="utf-8", errors="replace").rstrip("\0\n")
    except OSError:
        return ""


def run_tool(*argv: str, timeout_s: float = 5) -> str:
    """Output of a small system tool, '' when it is missing or fails."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def first_output_line(*argv: str, timeout_s: float = 2) -> str:
    """The first line of a tool that goes on for ever, which is ended then; '' when it is missing or stays silent."""
    try:
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.stdout is not None
            watchdog = threading.Timer(timeout_s, child.kill)
            watchdog.start()
            try:
                return child.stdout.readline().decode("utf-8", "replace")
            finally:
                watchdog.cancel()
                child.kill()
    except OSError:
        return ""


def temperature_c() -> float | None:
    """The hottest thermal zone in degrees Celsius, None where there is none."""
    readings = [read_text(path) for path in (SYSTEM / "sys/class/thermal").glob("thermal_zone*/temp")]
    values = [int(text) / 1000 for text in readings if re.match(r"-?\d+\Z", text)]
    return max(values) if values else None


def throttle_flags() -> dict[str, bool] | None:
    return parse_throttled(run_tool("vcgencmd", "get_throttled"))


def memory_available_bytes() -> int | None:
    return parse_meminfo(read_text("/proc/meminfo")).get("MemAvailable")


def board_model() -> str:
    return (
        read_text("/sys/firmware/devicetree/base/model")
        or read_text("/sys/devices/virtual/dmi/id/product_name")
        or platform.node()
    )


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
    """Versions of L4T and JetPack; None on what isn't a Jetson."""
    l4t = parse_tegra_release(read_text("/etc/nv_tegra_release"))
    if l4t is None:
        return None
    package = run_tool("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack")
    return {"l4t": l4t, "jetpack": parse_jetpack(package, l4t)}


def accelerators(board: dict[str, str | None] | None, npus: list[str]) -> list[str]:
    """Accelerators whose drivers show themselves, each as `kind: name`.

    `board` is what `jetson` found, `npus` the names that Windows gave.
    """
    found = []
    if board is not None:
        found.append(f"jetson: L4T {board['l4t']}, JetPack {board['jetpack'] or 'unknown'}")
    query = "--query-gpu=name,driver_version,memory.total"
    found += ["cuda: " + name for name in parse_nvidia_smi(run_tool("nvidia-smi", query, "--format=csv,noheader"))]
    for node in sorted((SYSTEM / "sys/class/accel").glob("accel*")):
        name = parse_accel_uevent(read_text(node / "device" / "uevent"))
        found.append("npu: " + (name or f"/dev/accel/{node.name}"))
    # Qualcomm's laptops reach their NPU through remote calls to its processor, not through /dev/accel.
    if (SYSTEM / "dev/fastrpc-cdsp").exists():
        found.append("npu: Qualcomm Hexagon NPU (fastrpc-cdsp)")
    return found + ["npu: " + name for name in npus]


def storage() -> dict[str, str | None]:
    """The disk that the install root lies on: its kind, its name, the file system. None where it isn't told."""
    mount = mount_of(parse_mountinfo(read_text("/proc/self/mountinfo")), str(ROOT))
    if mount is None:
        return {"storage": None, "storage_device": None, "file_system": None}
    disk, file_system = disk_behind(mount), mount["file_system"]
    if disk is None:
        # Of the network, in memory, or laid over other folders: the file system's name says it.
        return {"storage": file_system, "storage_device": None, "file_system": file_system}
    kind = storage_kind(disk.name, str(disk), read_text(disk / "device" / "type"))
    return {"storage": kind, "storage_device": disk.name, "file_system": file_system}


def disk_behind(mount: dict[str, str]) -> Path | None:
    """The folder in /sys of the disk that a mount's device is a part of, below mappers and RAIDs."""
    device = SYSTEM / "sys/dev/block" / mount["number"]
    if not device.exists():  # btrfs has numbers of its own; its source is the device
        source = os.path.realpath(SYSTEM / mount["source"].lstrip("/"))
        device = SYSTEM / "sys/class/block" / Path(source).name
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


def root_access() -> dict[str, Any]:
    """Why the install root can't be written to (None when it can), its mode, and whether it is this user's own.

    A file is really made, without a name where the system can do that: permissions don't tell of read-only disks.
    """
    found: dict[str, Any] = {"root_error": None, "root_mode": None, "root_owned": None}
    try:
        with tempfile.TemporaryFile(prefix=".probe-", dir=ROOT):
            pass
    except OSError as exc:
        found["root_error"] = exc.strerror or str(exc)
    if hasattr(os, "geteuid"):  # Windows has lists of who may do what instead
        status = ROOT.stat()
        found.update(root_mode=f"{status.st_mode & 0o7777:04o}", root_owned=status.st_uid == os.geteuid())
    return found


def power_mode() -> str | None:
    """A Jetson's, or a laptop's: `nvpmodel`, the firmware's platform profile, or Windows' power scheme."""
    if sys.platform == "win32":
        return parse_powercfg(run_tool("powercfg", "/getactivescheme"))
    return parse_nvpmodel(run_tool("nvpmodel", "-q")) or read_text("/sys/firmware/acpi/platform_profile") or None


def windows_facts() -> dict[str, Any]:
    """What only CIM and Plug and Play tell; {} where it can't be asked."""
    if sys.platform != "win32":
        return {}
    import base64

    drive = ROOT.drive[:1] if re.match(r"[A-Za-z]:", ROOT.drive) else "C"
    # Encoded, so that no shell reads it.
    script = base64.b64encode((WINDOWS_FACTS % drive).encode("utf-16-le")).decode("ascii")
    argv = ("powershell", "-NoProfile", "-NonInteractive", "-EncodedCommand", script)
    return parse_windows(run_tool(*argv, timeout_s=WINDOWS_TIMEOUT_S))


def total_memory_bytes() -> int | None:
    total = parse_meminfo(read_text("/proc/meminfo")).get("MemTotal")
    if total is None and hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total


def usable_cores() -> int:
    """Cores that this process may use: a container or taskset may leave fewer than the device has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def condition(board: dict[str, str | None] | None) -> dict[str, Any]:
    """What decides how fast it is just now. `board` is what `jetson` found."""
    stats = parse_tegrastats(first_output_line("tegrastats", "--interval", "100") if board else "")
    temp_c = temperature_c()
    return {
        "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "governor_driver": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver") or None,
        "power_mode": power_mode(),
        "power_modes": parse_nvpmodel_conf(read_text("/etc/nvpmodel.conf")),
        "rails_mw": stats["rails_mw"],
        "temp_c": max(stats["temp_c"].values(), default=None) if temp_c is None else temp_c,
        "throttled": throttle_flags(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "clock_unix_s": time.time(),
    }


def op_probe(_request: dict[str, Any]) -> dict[str, Any]:
    """Facts about the device. Cheap: no runtime is imported. What isn't told is None, or empty."""
    cpu = parse_cpuinfo(read_text("/proc/cpuinfo"))
    libc, libc_version = platform.libc_ver()
    board, windows = jetson(), windows_facts()
    facts: dict[str, Any] = {
        "board": board_model(),
        "soc": soc(),
        "arch": platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64"),
        "os": platform.system().lower(),
        "os_name": parse_os_release(read_text("/etc/os-release")) or platform.platform(),
        "kernel": platform.release(),
        "libc": f"{libc} {libc_version}".strip(),
        "glibc": glibc_version(),
        "cpu": cpu["name"] or platform.processor() or None,
        "isa": cpu["features"],
        "cores": usable_cores(),
        "ram_bytes": total_memory_bytes(),
        "mem_available_bytes": memory_available_bytes(),
        "free_disk_bytes": shutil.disk_usage(ROOT).free,
        **storage(),
        "python": platform.python_version(),
        "has_ensurepip": importlib.util.find_spec("ensurepip") is not None,
        "jetson": board,
        "cuda": parse_cuda_version(read_text("/usr/local/cuda/version.json")),
        "accelerators": accelerators(board, windows.pop("npus", [])),
        **condition(board),
        "install_root": str(ROOT),
        **root_access(),
    }
    return dict(facts, **{name: value for name, value in windows.items() if value is not None})


# --- the store: blobs, releases, the pointer ----------------------------------------------------------------


def fsync_path(path: Path) -> None:
    """Flush a file or a folder to the disk. Windows can't open folders: its rename is journaled."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Write beside, flush, rename, flush the folder: a power cut leaves the old or the new text, whole."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    fsync_path(path.parent)


@contextlib.contextmanager
def held(name: str, request: dict[str, Any]) -> Iterator[None]:
    """Hold one of the store's locks, `lock` (it changes) or `push.lock` (files arrive); the system frees it at our end.

    One that is taken is waited for, and the host hears of its holder again and again: a host that has gone ends us.
    """
    ROOT.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (ROOT / name).open("a+b") as file:
        told = None
        while not try_lock(file):
            if told is None or time.monotonic() - told > WAITING_S:
                told = time.monotonic()
                emit("event", {"type": "waiting", "holder": read_holder(ROOT / name)})
            time.sleep(LOCK_POLL_S)
        holder = {"by": str(request.get("by", "?"))[:200], "op": request["op"], "since_unix_s": time.time()}
        # On a full or read-only disk the lock holds without a name.
        with contextlib.suppress(OSError):
            file.truncate(0)
            os.write(file.fileno(), json.dumps(holder).encode("utf-8"))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def try_lock(file: Any) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            # Windows lets nobody read what is locked: a byte far behind the holder's name.
            file.seek(LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise


def read_holder(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None in the moment before it has written its name."""
    try:
        holder: dict[str, Any] = json.loads(read_text(path))
    except ValueError:
        return None
    return holder


def op_hold(request: dict[str, Any]) -> dict[str, Any]:
    """Keep `push.lock` for as long as the host keeps our stdin open: two pushers would write to the same files."""
    with held("push.lock", request):
        emit("event", {"type": "held"})
        while os.read(0, CHUNK):
            pass
    return {}


def sha256_file(path: Path, heard: Callable[[int], None] | None = None) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while True:
            chunk = file.read(CHUNK)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)
            if heard:
                heard(len(chunk))


def read_manifest(text: str, release: str) -> list[dict[str, Any]]:
    """Parse and distrust a manifest: its hash is the release's name, and every path stays inside it."""
    if not HEX64.match(release):
        raise AgentFailure("bad_request", f"not a bundle id: {release!r}")
    if hashlib.sha256(text.encode("utf-8")).hexdigest() != release:
        raise AgentFailure("corrupt", f"the manifest doesn't have the hash {release[:12]}")
    artifacts: list[dict[str, Any]] = json.loads(text)["artifacts"]
    for artifact in artifacts:
        path, size = artifact["path"], artifact["size_bytes"]
        parts = path.split("/")
        if (
            not HEX64.match(artifact["sha256"])
            or not isinstance(size, int)
            or not 0 <= size < 1 << 40
            or any(part in ("", ".", "..") for part in parts)
            or re.search(r"[\\:\0]", path)
            or parts == ["manifest.json"]
        ):
            raise AgentFailure("corrupt", f"the manifest names an unsafe file: {path!r}")
    return artifacts


def op_missing(request: dict[str, Any]) -> dict[str, Any]:
    """Which of `artifacts` have no blob here yet, the hashes of what has arrived of each, and the free space.

    What has arrived may have holes: it is hashed in pieces of `chunk_bytes`, and those that are right stay.
    """
    if (RELEASES / request.get("release", "-")).is_dir():
        return {"installed": True, "missing": [], "free_bytes": shutil.disk_usage(ROOT).free}
    missing = []
    for artifact in request["artifacts"]:
        sha256, size = artifact["sha256"], artifact["size_bytes"]
        if not HEX64.match(sha256):
            raise AgentFailure("bad_request", f"not a SHA-256: {sha256!r}")
        blob, part = BLOBS / sha256, INCOMING / f"{sha256}.part"
        if blob.is_file() and blob.stat().st_size == size:
            continue
        entry: dict[str, Any] = {"sha256": sha256, "chunks": []}
        if part.is_file():
            if part.stat().st_size <= size:
                entry["chunks"] = chunk_hashes(part, request["chunk_bytes"])
            else:
                part.unlink()
        missing.append(entry)
    INCOMING.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {"installed": False, "missing": missing, "free_bytes": shutil.disk_usage(ROOT).free}


def chunk_hashes(path: Path, chunk_bytes: int) -> list[str]:
    """SHA-256 of every `chunk_bytes` of a file, the last chunk as long as it is."""
    if not CHUNK <= chunk_bytes <= 64 * CHUNK:
        raise AgentFailure("bad_request", f"chunks of {chunk_bytes} bytes")
    hashes = []
    with path.open("rb", buffering=0) as file:
        while True:
            digest, left = hashlib.sha256(), chunk_bytes
            while left:
                data = file.read(min(left, CHUNK))
                if not data:
                    break
                digest.update(data)
                left -= len(data)
            if left < chunk_bytes:
                hashes.append(digest.hexdigest())
            if left:
                return hashes


def op_install(request: dict[str, Any]) -> dict[str, Any]:
    """Turn what arrived into a release: all artifacts hashed, linked and flushed, the folder renamed last."""
    release, text = request["release"], request["manifest"]
    artifacts = read_manifest(text, release)
    with held("lock", request):
        if (RELEASES / release).is_dir():
            return {"release": release, "installed": False}
        BLOBS.mkdir(mode=0o700, parents=True, exist_ok=True)
        RELEASES.mkdir(mode=0o700, parents=True, exist_ok=True)
        verify_blobs(artifacts)
        beside = RELEASES / f".new-{release[:16]}"
        shutil.rmtree(beside, ignore_errors=True)
        link_release(artifacts, beside)
        write_durably(beside / "manifest.json", text)
        for folder in [beside, *(path for path in beside.rglob("*") if path.is_dir())]:
            fsync_path(folder)
        beside.replace(RELEASES / release)
        fsync_path(RELEASES)
    return {"release": release, "installed": True}


def verify_blobs(artifacts: list[dict[str, Any]]) -> None:
    unique = {artifact["sha256"]: artifact for artifact in artifacts}
    total, done = sum(artifact["size_bytes"] for artifact in unique.values()), 0

    def heard(count: int) -> None:
        nonlocal done
        done += count
        progress("verify", done, total, "bytes")

    for sha256, artifact in unique.items():
        blob, part = BLOBS / sha256, INCOMING / f"{sha256}.part"
        source = blob if blob.is_file() else part
        if not source.is_file():
            raise AgentFailure(
                "corrupt", f"{artifact['path']} never arrived", "deploy again: only what is missing is sent"
            )
        if sha256_file(source, heard) != sha256:
            # What is wrong is moved out of the way, so that the next deploy sends it afresh.
            source.unlink()
            raise AgentFailure(
                "corrupt",
                f"{artifact['path']} doesn't have its SHA-256 on the device",
                "deploy again: it is sent afresh",
            )
        if source is part:
            # A hard link from a local push shares its inode with the bundle: it is read-only already.
            with contextlib.suppress(PermissionError):
                part.chmod(0o444)
            fsync_path(part)
            part.replace(blob)
    fsync_path(BLOBS)


def link_release(artifacts: list[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for artifact in artifacts:
        path = folder / artifact["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = BLOBS / artifact["sha256"]
        try:
            os.link(blob, path)
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                raise
            shutil.copyfile(blob, path)  # exFAT cards have no hard links
            fsync_path(path)


def read_pointer() -> dict[str, Any]:
    """current.json, or an empty pointer when nothing was ever activated."""
    try:
        pointer: dict[str, Any] = json.loads(POINTER.read_text(encoding="utf-8"))
        return pointer
    except FileNotFoundError:
        return {"pointer_version": 1, "release": None, "runtime": None, "previous": []}
    except ValueError as exc:
        raise AgentFailure("corrupt", f"{POINTER} isn't JSON: {exc}", "activate a release again") from exc


def runtime_python(runtime: str | None) -> Path:
    if not runtime or not LOCK_NAME.match(runtime):
        raise AgentFailure("bad_request", f"not a runtime: {runtime!r}")
    folder = RUNTIMES / runtime
    if not (folder / "ready.json").is_file():
        raise AgentFailure(
            "no_runtime", f"the runtime {runtime} isn't installed here", "deploy again: it gets installed"
        )
    return folder / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def release_folder(release: str | None) -> Path:
    folder = RELEASES / release if release and HEX64.match(release) else None
    if folder is None or not (folder / "manifest.json").is_file():
        raise AgentFailure("no_release", f"no release {str(release)[:12]} here", "`edgephi releases TARGET` lists them")
    return folder


def op_activate(request: dict[str, Any]) -> dict[str, Any]:
    """Point `current` at a release and the runtime that executes it; the old pair becomes the way back."""
    release, runtime = request["release"], request["runtime"]
    release_folder(release)
    runtime_python(runtime)
    with held("lock", request):
        pointer = read_pointer()
        if (pointer["release"], pointer["runtime"]) == (release, runtime):
            return {"release": release, "activated": False}
        previous = pointer["previous"]
        if pointer["release"]:
            active = {"release": pointer["release"], "runtime": pointer["runtime"]}
            previous = [active, *previous][:HISTORY_LENGTH]
        set_pointer(release, runtime, previous)
    return {"release": release, "activated": True}


def set_pointer(release: str | None, runtime: str | None, previous: list[dict[str, Any]]) -> None:
    pointer = {
        "pointer_version": 1,
        "release": release,
        "runtime": runtime,
        "previous": previous,
        "activated_unix_s": time.time(),
    }
    write_durably(POINTER, json.dumps(pointer, indent=1))


def op_rollback(request: dict[str, Any]) -> dict[str, Any]:
    """Point `current` at the release that was active before, as often as there is one."""
    with held("lock", request):
        pointer = read_pointer()
        previous = [entry for entry in pointer["previous"] if (RELEASES / entry["release"]).is_dir()]
        if not previous:
            raise AgentFailure(
                "no_release",
                "there is no release to go back to",
                "`edgephi releases TARGET` lists what is installed",
            )
        set_pointer(previous[0]["release"], previous[0]["runtime"], previous[1:])
        return {"release": previous[0]["release"], "from": pointer["release"]}


def op_deactivate(request: dict[str, Any]) -> dict[str, Any]:
    """Point `current` at nothing: for a release that must not stay and has none before it."""
    with held("lock", request):
        pointer = read_pointer()
        write_durably(POINTER, json.dumps(dict(pointer, release=None, runtime=None, activated_unix_s=time.time())))
    return {"release": None, "from": pointer["release"]}


def op_discard(request: dict[str, Any]) -> dict[str, Any]:
    """Throw away what arrived in incoming/ and isn't for the store, whole or not."""
    for sha256 in request["sha256"]:
        if not HEX64.match(sha256):
            raise AgentFailure("bad_request", f"not a SHA-256: {sha256!r}")
        (INCOMING / f"{sha256}.part").unlink(missing_ok=True)
    return {}


def op_releases(_request: dict[str, Any]) -> dict[str, Any]:
    """Everything installed, newest first, and the pointer."""
    pointer = read_pointer()
    releases = []
    for folder in RELEASES.glob("*") if RELEASES.is_dir() else []:
        if HEX64.match(folder.name):
            manifest = folder / "manifest.json"
            releases.append(
                {
                    "release": folder.name,
                    "manifest": json.loads(manifest.read_text(encoding="utf-8")),
                    "installed_unix_s": manifest.stat().st_mtime,
                    "active": folder.name == pointer["release"],
                }
            )
    releases.sort(key=lambda entry: -entry["installed_unix_s"])
    return {"releases": releases, "pointer": pointer}


def op_verify(request: dict[str, Any]) -> dict[str, Any]:
    """Hash every file of every release again. With `repair` what is damaged is removed: the blobs, and the releases
    that have them; when the active one is among these, `current` goes back to the newest whole one.

    The next deploy sends the damaged files afresh, and those alone.
    """
    with held("lock", request):
        damage = find_damage()
        damaged = [entry["release"] for entry in damage if entry["damaged"]]
        pointer = read_pointer()
        if damaged and request.get("repair"):
            pointer = leave(pointer, damaged)
            for entry in damage:
                for sha256 in entry["blobs"] if entry["damaged"] else []:
                    (BLOBS / sha256).unlink(missing_ok=True)
            remove_releases(damaged)
    return {"releases": damage, "active": pointer["release"], "repaired": bool(damaged and request.get("repair"))}


def find_damage() -> list[dict[str, Any]]:
    """Each release with its damaged paths and the blobs behind them; a file with two names is read once."""
    releases = [(folder, release_artifacts(folder)) for folder in release_folders()]
    total = sum(artifact["size_bytes"] for _, artifacts in releases for artifact in artifacts or [])
    done = 0
    known: dict[tuple[int, int], str] = {}

    def heard(count: int) -> None:
        nonlocal done
        done += count
        progress("verify", done, total, "bytes")

    def whole(path: Path, artifact: dict[str, Any]) -> bool:
        try:
            stat = path.stat()
            inode = (stat.st_dev, stat.st_ino)
            if inode not in known:
                known[inode] = sha256_file(path, heard)
            elif stat.st_size:
                heard(stat.st_size)
        except OSError:  # missing, or the disk can't read it any more
            return False
        wanted: str = artifact["sha256"]
        return known[inode] == wanted

    found = []
    for folder, artifacts in releases:
        wrong = [artifact for artifact in artifacts or [] if not whole(folder / artifact["path"], artifact)]
        paths = ["manifest.json"] if artifacts is None else sorted(artifact["path"] for artifact in wrong)
        blobs = sorted({artifact["sha256"] for artifact in wrong})
        found.append({"release": folder.name, "damaged": paths, "blobs": blobs})
    return found


def release_folders() -> list[Path]:
    folders = RELEASES.glob("*") if RELEASES.is_dir() else []
    return sorted(folder for folder in folders if HEX64.match(folder.name))


def release_artifacts(folder: Path) -> list[dict[str, Any]] | None:
    """The artifacts of an installed release, None when its manifest isn't what its name says."""
    try:
        return read_manifest((folder / "manifest.json").read_text(encoding="utf-8"), folder.name)
    except (OSError, ValueError, AgentFailure):
        return None


def leave(pointer: dict[str, Any], releases: list[str]) -> dict[str, Any]:
    """Move `current`, and the way back, off some releases before they are removed; returns the new pointer."""
    previous = [entry for entry in pointer["previous"] if entry["release"] not in releases]
    active = {"release": pointer["release"], "runtime": pointer["runtime"]}
    if active["release"] in releases:
        there = [entry for entry in previous if (RELEASES / entry["release"]).is_dir()]
        active, previous = (there[0], there[1:]) if there else ({"release": None, "runtime": None}, [])
    elif previous == pointer["previous"]:
        return pointer
    set_pointer(active["release"], active["runtime"], previous)
    return read_pointer()


def remove_releases(releases: list[str]) -> None:
    """A release disappears under its name at once; a power cut leaves a folder that nothing trusts."""
    for release in releases:
        gone = RELEASES / f".gone-{release[:16]}"
        shutil.rmtree(gone, ignore_errors=True)
        (RELEASES / release).replace(gone)
    fsync_path(RELEASES)
    for release in releases:
        shutil.rmtree(RELEASES / f".gone-{release[:16]}", ignore_errors=True)


def op_prune(request: dict[str, Any]) -> dict[str, Any]:
    """Remove all but the active release and the `keep` others used or installed last, with what only they needed.

    First the pointer forgets them, then their folders go, then blobs and runtimes that nothing names any more: a
    power cut at any point leaves a store in which everything named is there. With `dry_run` nothing is removed.
    """
    with held("push.lock", request), held("lock", request):
        pointer = read_pointer()
        doomed = releases_to_prune(pointer, request["keep"])
        kept = [folder for folder in release_folders() if folder.name not in doomed]
        named = [release_artifacts(folder) for folder in kept]
        if any(artifacts is None for artifacts in named):
            raise AgentFailure("corrupt", "a release's manifest is damaged", "`edgephi verify TARGET --repair` first")
        blobs = {artifact["sha256"] for artifacts in named for artifact in artifacts or []}
        runtimes = {e["runtime"] for e in [pointer, *pointer["previous"]] if e["release"] not in doomed}
        rest = list(leftovers(blobs, runtimes))
        freed = sum(tree_bytes(path) for path in rest)
        if not request.get("dry_run"):
            if doomed:
                leave(pointer, doomed)
                remove_releases(doomed)
            for path in rest:
                remove(path)
    return {"removed": doomed, "kept": [folder.name for folder in kept], "freed_bytes": freed}


def releases_to_prune(pointer: dict[str, Any], keep: int) -> list[str]:
    """All but the active one and `keep` others: those active before first, then the newest installed."""
    installed = sorted(release_folders(), key=lambda folder: -folder.stat().st_mtime)
    order = [entry["release"] for entry in pointer["previous"]] + [folder.name for folder in installed]
    there = {folder.name for folder in installed} - {pointer["release"]}
    others = [release for release in dict.fromkeys(order) if release in there]
    return others[keep:]


def leftovers(blobs: set[str], runtimes: set[str]) -> Iterator[Path]:
    """What nothing names: all blobs and runtimes but these, what never became a release, what killed agents left."""
    # While we hold the lock nobody is writing the last two.
    for folder, pattern in ((BLOBS, "*"), (RUNTIMES, "*"), (INCOMING, "*"), (RELEASES, ".*"), (ROOT, "*.tmp")):
        for path in sorted(folder.glob(pattern)) if folder.is_dir() else []:
            # A runtime is made before its release is activated, an evaluation's files are read after their push.
            in_use = folder in (RUNTIMES, INCOMING) and time.time() - path.stat().st_mtime < STALE_S
            if not in_use and path.name not in (blobs if folder == BLOBS else runtimes):
                yield path


def tree_bytes(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file() and not inner.is_symlink())


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# --- runtimes -----------------------------------------------------------------------------------------------


def op_provision(request: dict[str, Any]) -> dict[str, Any]:
    """Make the virtual environment that executes bundles.

    It comes from the device's index, or from wheels pushed to incoming/. With `query_only` nothing is made:
    `installed` is None when there is no such runtime.

    It counts only once `ready.json` stands in it; a half-made one is made again.
    """
    lock = request["lock"]
    if not LOCK_NAME.match(lock):
        raise AgentFailure("bad_request", f"not a runtime: {lock!r}")
    folder = RUNTIMES / lock
    with held("lock", request):
        ready = folder / "ready.json"
        if ready.is_file():
            return dict(json.loads(ready.read_text(encoding="utf-8")), installed=False)
        if request.get("query_only"):
            return {"installed": None}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        wheels = [take_wheel(wheel, folder / "wheels") for wheel in request.get("wheels", [])]
        python = make_venv(folder / "venv", wheels)
        install_packages(python, request["packages"], wheels)
        freeze = import_probe(python)
        write_durably(ready, json.dumps({"lock": lock, "packages": freeze}))
        shutil.rmtree(folder / "wheels", ignore_errors=True)
        for wheel in request.get("wheels", []):
            (INCOMING / f"{wheel['sha256']}.part").unlink()
        return {"lock": lock, "packages": freeze, "installed": True}


def take_wheel(wheel: dict[str, str], folder: Path) -> str:
    """Verify a pushed wheel and give it back its name, which pip reads.

    It stays in incoming/ until all is installed.
    """
    name, sha256 = wheel["name"], wheel["sha256"]
    if not WHEEL_NAME.match(name) or not HEX64.match(sha256):
        raise AgentFailure("bad_request", f"not a wheel: {name!r}")
    part = INCOMING / f"{sha256}.part"
    if not part.is_file() or sha256_file(part) != sha256:
        part.unlink(missing_ok=True)
        raise AgentFailure(
            "corrupt", f"{name} doesn't have its SHA-256 on the device", "deploy again: it is sent afresh"
        )
    folder.mkdir(mode=0o700, exist_ok=True)
    os.link(part, folder / name)
    return str(folder / name)


def make_venv(folder: Path, wheels: list[str]) -> str:
    pip_needed = not wheels
    if pip_needed and importlib.util.find_spec("ensurepip") is None:
        raise AgentFailure(
            "no_pip",
            "this Python can't make a virtual environment with pip (ensurepip is missing)",
            "install python3-venv on the device, or deploy with --offline",
        )
    progress("runtime: virtual environment", 0, 3)
    argv = [sys.executable, "-m", "venv", *([] if pip_needed else ["--without-pip"]), str(folder)]
    run_or_fail(argv, "no_venv", "making the virtual environment failed", "install python3-venv on the device")
    return str(folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))


def install_packages(python: str, packages: list[str], wheels: list[str]) -> None:
    progress("runtime: packages", 1, 3)
    quiet = ["install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    quiet += ["--only-binary", ":all:"]
    if wheels:
        pip = next((wheel for wheel in wheels if Path(wheel).name.startswith("pip-")), None)
        if pip is None:
            raise AgentFailure("bad_request", "no pip wheel among the pushed wheels")
        # A wheel is a zip that Python can run: pip installs from its own wheel, without being installed.
        others = [wheel for wheel in wheels if wheel != pip]
        argv = [python, f"{pip}/pip", *quiet, "--no-index", "--no-deps", *others]
    else:
        argv = [python, "-m", "pip", *quiet, *packages]
    hint = None if wheels else "no package index there? deploy with --offline"
    run_or_fail(argv, "pip", "installing the runtime failed", hint)


def import_probe(python: str) -> list[str]:
    """Import the runtime in a process of its own: a wheel for another CPU dies there, not in a first chat."""
    progress("runtime: import", 2, 3)
    code = (
        "import json, onnxruntime_genai; from importlib import metadata;"
        "print(json.dumps(sorted(d.name + '==' + d.version for d in metadata.distributions())))"
    )
    argv = [python, "-c", code]
    output = run_or_fail(argv, "import", "the runtime is installed but doesn't import on this device", None)
    packages: list[str] = json.loads(output.splitlines()[-1])
    return packages


def run_or_fail(argv: list[str], code: str, message: str, hint: str | None) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode == 0:
        return done.stdout.decode("utf-8", "replace")
    stderr = done.stderr.decode("utf-8", "replace")
    sys.stderr.write(stderr)
    if "No space left on device" in stderr:
        raise AgentFailure("device_full", f"{message}: no space left on the device", "free some space there")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise AgentFailure(code, f"{message}: killed by {name}", death_hint(-done.returncode))
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {done.returncode}"
    raise AgentFailure(code, f"{message}: {last}", hint)


def death_hint(number: int) -> str | None:
    if number == SIGKILL:
        return "most often that is the out-of-memory killer: plan a smaller context or a smaller recipe"
    if number == getattr(signal, "SIGILL", -1):
        return "this CPU lacks an instruction that the runtime's wheel uses"
    return None


# --- operations in the runtime: the outer half starts a fresh process, the inner half (child_*) runs in it --


def start_child(request: dict[str, Any], *, stdin: int | None, stdout: int | None) -> subprocess.Popen[bytes]:
    pointer = read_pointer()
    release = request.get("release") or pointer["release"]
    runtime = request.get("runtime") or pointer["runtime"]
    if not release and "model_folder" not in request:
        raise AgentFailure("no_release", "nothing is active here", "`edgephi deploy BUNDLE TARGET` first")
    folder = request.get("model_folder") or release_folder(release)
    argv = [str(runtime_python(runtime)), "-u", __file__]
    environment = dict(os.environ, ORT_DISABLE_TELEMETRY="1")
    environment[CHILD_REQUEST] = request_file(json.dumps(dict(request, model_folder=str(folder))))
    return subprocess.Popen(argv, env=environment, stdin=stdin, stdout=stdout)


def request_file(text: str) -> str:
    """A private file for the child: a request may be longer than an argument, and stdin is the conversation's.

    What is installed has to work on a full or read-only disk too: then the system's own folder for such files takes it.
    """
    try:
        return private_file(text, ROOT)
    except OSError:
        return private_file(text, None)


def private_file(text: str, folder: Path | None) -> str:
    handle, path = tempfile.mkstemp(prefix=".request-", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        Path(path).unlink()
        raise
    return path


def wait_child(child: subprocess.Popen[bytes]) -> Any:
    """Pass on what a child says; return its result.

    A death without a word becomes a failure that names the signal.
    """
    assert child.stdout is not None, "start it with stdout=PIPE"
    result = None
    for line in child.stdout:
        message = json.loads(line)
        if "result" in message:
            result = message["result"]
        elif "error" in message:
            child.wait()
            raise AgentFailure(**message["error"])
        else:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
    status = child.wait()
    if result is None:
        name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        raise AgentFailure("child_died", f"the runtime's process ended with {name}", death_hint(-status))
    return result


def in_runtime(request: dict[str, Any]) -> Any:
    """Run a request whole in a fresh process of the runtime, its stdin closed."""
    child = start_child(request, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        return wait_child(child)
    finally:
        if child.poll() is None:
            child.kill()


class Sampler(threading.Thread):
    """Watches the device while a run goes on: the least available memory and the highest temperature."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.mem_available_start = self.mem_available_min = memory_available_bytes()
        self.temp_c_start = self.temp_c_max = temperature_c()

    def run(self) -> None:
        while not self.done.wait(0.1):
            available, temp = memory_available_bytes(), temperature_c()
            if available is not None and self.mem_available_min is not None:
                self.mem_available_min = min(self.mem_available_min, available)
            if temp is not None and self.temp_c_max is not None:
                self.temp_c_max = max(self.temp_c_max, temp)

    def facts(self) -> dict[str, float | None]:
        return {
            "mem_available_start_bytes": self.mem_available_start,
            "mem_available_min_bytes": self.mem_available_min,
            "temp_c_start": self.temp_c_start,
            "temp_c_max": self.temp_c_max,
        }


def op_bench(request: dict[str, Any]) -> Any:
    """One run: a fresh process loads, warms up and measures, while the device is watched from outside."""
    release = release_folder(request.get("release") or read_pointer()["release"])
    cold = bool(request.get("cold")) and drop_page_cache(release)
    throttled_before = throttle_flags()
    sampler = Sampler()
    sampler.start()
    try:
        run = in_runtime(request)
    finally:
        sampler.done.set()
    throttled = [flags for flags in (throttled_before, throttle_flags()) if flags]
    run.update(sampler.facts(), cold=cold)
    now = [value for flags in throttled for key, value in flags.items() if key.endswith("_now")]
    run["throttled"] = any(now) if throttled else None
    return run


def op_measure(request: dict[str, Any]) -> dict[str, Any]:
    """How fast this device reads memory and, where `runtime` is installed, multiplies `kernel`; best of a second."""
    found = {"read_bytes_per_s": read_rate(usable_cores()), "kernels_per_s": None}
    if (RUNTIMES / request["runtime"] / "ready.json").is_file():
        try:
            found.update(in_runtime(dict(request, model_folder=str(ROOT))))
        except AgentFailure as exc:
            # A runtime that can't do this product may do its models all the same.
            sys.stderr.write(f"no kernel was measured: {exc.message}\n")
    return found


def read_rate(threads: int) -> float:
    """Bytes a second of several threads that look through more memory than caches hold for a byte that isn't there."""
    import ctypes

    library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    search = library.memchr  # ctypes lets go of the interpreter's lock meanwhile
    search.argtypes, search.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], ctypes.c_void_p
    buffers = [bytearray(MEASURED_BYTES // threads) for _ in range(threads)]
    views = [(ctypes.c_char * len(buffer)).from_buffer(buffer) for buffer in buffers]

    def read_all() -> None:
        jobs = [threading.Thread(target=search, args=(ctypes.addressof(view), 255, len(view))) for view in views]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

    return sum(map(len, buffers)) / best_time_s(read_all)


def best_time_s(action: Callable[[], Any]) -> float:
    """The shortest of what MEASURED_S has room for, three at least: what disturbs only makes it longer."""
    best, started, rounds = float("inf"), time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - started < MEASURED_S:
        begun = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - begun)
        rounds += 1
    return best


def drop_page_cache(folder: Path) -> bool:
    """Ask the kernel to forget a release's pages so that loading reads the disk. True if it was asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
    return True


def op_chat(request: dict[str, Any]) -> None:
    """A conversation: after the request, every line of stdin is one JSON turn. Ends with stdin.

    The child inherits both streams, so it is the child that says the result.
    """
    child = start_child(request, stdin=None, stdout=None)
    status = child.wait()
    if status < 0:
        name = signal.Signals(-status).name
        raise AgentFailure("child_died", f"the runtime's process ended with {name}", death_hint(-status))
    if status > 0:
        sys.exit(status)  # it has already said why


def load_model(request: dict[str, Any]) -> tuple[Any, Any, Any, int]:
    """The runtime's module, model and tokenizer, with the time that loading took."""
    import onnxruntime_genai as og

    if hasattr(og, "disable_telemetry_events"):
        og.disable_telemetry_events()
    started = time.perf_counter_ns()
    try:
        config = og.Config(request["model_folder"])
        # Left alone, the runtime takes one thread on some virtual machines and boards, at half the speed or less.
        options = {"intra_op_num_threads": settings_of(request).get("threads") or usable_cores()}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        model = og.Model(config)
        tokenizer = og.Tokenizer(model)
    except Exception as exc:
        raise AgentFailure("load_failed", f"the runtime can't load this bundle: {first_line(exc)}") from exc
    return og, model, tokenizer, time.perf_counter_ns() - started


def first_line(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]


def settings_of(request: dict[str, Any]) -> dict[str, Any]:
    """The profile's settings: threads, chunk_size, ngram_size, max_draft_tokens; what is None isn't set.

    A prompt that crosses a LongRoPE model's original context must be read at once: chunks of it would get one set of
    rotary frequencies before the crossing and another one after it, and the answer would be wrong without a word.
    """
    settings = dict(request.get("settings") or {})
    if settings.get("chunk_size") and crosses_original_context(request):
        del settings["chunk_size"]
    return settings


def crosses_original_context(request: dict[str, Any]) -> bool:
    """Whether the planned context is longer than what a LongRoPE model's short frequencies are for."""
    folder = request.get("model_folder")
    text = read_text(Path(folder) / "config.json") if folder else ""
    config = json.loads(text) if text else {}
    rotary = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rotary.get("rope_type") or rotary.get("type") or "default"
    original = config.get("original_max_position_embeddings")
    return kind != "default" and original is not None and planned_context(request) > original


def new_generator(og: Any, model: Any, settings: dict[str, Any] | None = None, **options: Any) -> Any:
    """A greedy generator unless `options` say otherwise.

    Quality is measured without `settings`: a prompt read in chunks leaves the last chunk's logits only.
    """
    params = og.GeneratorParams(model)
    search = {"batch_size": 1, "do_sample": False, **options}
    if settings and settings.get("chunk_size"):
        search["chunk_size"] = settings["chunk_size"]
    params.set_search_options(**search)
    if settings and settings.get("ngram_size"):
        speculate(params, settings)
    return og.Generator(model, params)


def speculate(params: Any, settings: dict[str, Any]) -> None:
    chosen = {name: settings[name] for name in ("ngram_size", "max_draft_tokens") if settings.get(name)}
    try:
        params.set_speculative_options(**chosen)
    except (AttributeError, RuntimeError) as exc:
        message = f"this runtime can't do n-gram speculation with {chosen}: {first_line(exc)}"
        raise AgentFailure("unsupported", message, "take ngram_size out of the profile's [runtime]") from exc


def draft_facts(generator: Any) -> dict[str, int]:
    """How many tokens speculation had checked, and how many of them held."""
    stats = generator.get_speculative_stats()
    return {"drafted_tokens": stats["draft_tokens_evaluated"], "accepted_tokens": stats["draft_tokens_accepted"]}


def planned_context(request: dict[str, Any]) -> int:
    text = (Path(request["model_folder"]) / "genai_config.json").read_text(encoding="utf-8")
    length: int = json.loads(text)["search"]["max_length"]
    return length


def memory_facts() -> dict[str, int | None]:
    """Peak resident and current proportional memory of this process in bytes, None where it isn't known."""
    if sys.platform == "win32":
        return {"rss_peak_bytes": windows_peak_working_set(), "pss_bytes": None}
    peak = parse_status_kib(read_text("/proc/self/status"), "VmHWM")
    if peak is None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    pss = parse_status_kib(read_text("/proc/self/smaps_rollup"), "Pss")
    return {"rss_peak_bytes": peak, "pss_bytes": pss}


def windows_peak_working_set() -> int | None:
    if sys.platform != "win32":
        return None
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", wintypes.DWORD),
            ("faults", wintypes.DWORD),
            ("peak", ctypes.c_size_t),
            ("rest", ctypes.c_size_t * 7),
        ]

    counters = Counters(cb=ctypes.sizeof(Counters))
    handle = ctypes.windll.kernel32.GetCurrentProcess()
    ok = ctypes.windll.psapi.GetProcessMemoryInfo(handle, ctypes.byref(counters), counters.cb)
    return int(counters.peak) if ok else None


def prompt_ids(tokenizer: Any, text: str, length: int) -> list[int]:
    """Exactly `length` token ids of `text`, repeated as often as needed."""
    ids = [int(token) for token in tokenizer.encode(text)]
    if not ids:
        raise AgentFailure("bad_request", "the workload's prompt has no tokens")
    return (ids * (length // len(ids) + 1))[:length]


def child_check(request: dict[str, Any]) -> dict[str, Any]:
    """Load and generate a few tokens: the proof that a bundle works in this runtime on this device."""
    og, model, tokenizer, load_ns = load_model(request)
    ids = prompt_ids(tokenizer, request["prompt"], 8)
    count = min(request["tokens"], planned_context(request) - len(ids))
    length = len(ids) + count
    generator = new_generator(og, model, settings_of(request), max_length=length, min_length=length)
    generator.append_tokens(ids)
    if not all_finite(generator):
        hint = "the weights or the quantization are broken"
        raise AgentFailure("bad_logits", "the model's logits aren't finite numbers", hint)
    while not generator.is_done():
        generator.generate_next_token()
    generated = [int(token) for token in generator.get_sequence(0)][len(ids) :]
    return {"load_ns": load_ns, "generated_tokens": len(generated), "text": tokenizer.decode(generated)}


def all_finite(generator: Any) -> bool:
    import numpy

    return bool(numpy.isfinite(numpy.asarray(generator.get_logits())).all())


def child_bench(request: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up, measure. Returns raw stamps: nothing is averaged here."""
    og, model, tokenizer, load_ns = load_model(request)
    workload = request["workload"]
    load_peak = memory_facts()["rss_peak_bytes"]
    ids = prompt_ids(tokenizer, request["prompt"], workload["prompt_tokens"])
    rounds = workload["warmup"] + workload["repetitions"]
    samples = []
    for index in range(rounds):
        sample = measure(og, model, ids, workload["generate_tokens"], settings_of(request))
        if index >= workload["warmup"]:
            samples.append(sample)
        progress("measure", index + 1, rounds)
    # Memory first, quality after it: the logits of whole windows are not what the workload costs.
    result = {"load_ns": load_ns, "load_peak_bytes": load_peak, "samples": samples, **memory_facts()}
    if request.get("quality_text"):
        result["nll"] = negative_log_likelihood(og, model, tokenizer, request["quality_text"], workload)
    return result


def measure(og: Any, model: Any, ids: list[int], generate_tokens: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Stamps in nanoseconds of one generation: `submit`, then one for every token that came out."""
    length = len(ids) + generate_tokens
    generator = new_generator(og, model, settings, max_length=length, min_length=length)
    submit = time.perf_counter_ns()
    generator.append_tokens(ids)
    stamps = []
    while not generator.is_done():
        generator.generate_next_token()
        stamps.append(time.perf_counter_ns() - submit)
    tokens = [int(token) for token in generator.get_sequence(0)][len(ids) :]
    digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
    drafts = draft_facts(generator) if settings.get("ngram_size") else {}
    return {"prompt_tokens": len(ids), "token_ns": stamps, "tokens_sha256": digest, **drafts}


def negative_log_likelihood(
    og: Any, model: Any, tokenizer: Any, text: str, workload: dict[str, Any]
) -> list[dict[str, Any]]:
    """Negative log-likelihood in nats of held-out text, one entry a window: {sum, count}.

    Windows don't overlap, and every token but a window's first is predicted from those before it there.
    """
    results = []
    ids = [int(token) for token in tokenizer.encode(text)][: workload["quality_tokens"]]
    windows = text_windows(ids, workload["quality_window_tokens"])
    stepwise = last_logits_only(og, model)
    for index, tokens in enumerate(windows):
        log_probs = log_probabilities(og, model, tokens, stepwise)
        results.append({"sum": chosen_nll(log_probs, tokens), "count": len(tokens) - 1})
        progress("perplexity", index + 1, len(windows))
    return results


def text_windows(ids: list[int], window: int) -> list[list[int]]:
    """Token ids in whole windows; what is left over is left out."""
    return [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)]


def last_logits_only(og: Any, model: Any) -> bool:
    """Whether this bundle's graph gives the last token's logits alone (a pruned head), whatever it reads."""
    generator = new_generator(og, model, max_length=3)
    generator.append_tokens([0, 0])
    return int(generator.get_output("logits").shape[1]) == 1


def log_probabilities(og: Any, model: Any, tokens: list[int], stepwise: bool) -> Any:
    """Natural logarithms of the probabilities of every next token, float32 (len(tokens) - 1, vocabulary).

    One window's logits are the most that is held. `stepwise` reads one token at a time, as a pruned head needs it.
    """
    import numpy

    generator = new_generator(og, model, max_length=len(tokens) + 1)
    if stepwise:
        rows = []
        for token in tokens[:-1]:
            generator.append_tokens([token])
            rows.append(numpy.array(generator.get_output("logits")[0, -1], dtype=numpy.float32))
        logits = numpy.stack(rows)
    else:
        generator.append_tokens(tokens)
        logits = numpy.array(generator.get_output("logits")[0, :-1], dtype=numpy.float32)
    if not numpy.isfinite(logits).all():
        raise AgentFailure(
            "bad_logits", "the model's logits aren't finite numbers", "the weights or the quantization are broken"
        )
    for rows in row_blocks(logits):
        rows -= rows.max(axis=-1, keepdims=True)
        normalize(rows)
    return logits


def row_blocks(table: Any) -> Iterator[Any]:
    """Views of some rows each: what is computed from them needs little memory beside a window's logits."""
    for start in range(0, len(table), LOGIT_ROWS):
        yield table[start : start + LOGIT_ROWS]


def normalize(rows: Any) -> None:
    """Shift each row, in place, so that its exponentials add up to one."""
    import numpy

    rows -= numpy.log(numpy.exp(rows).sum(axis=-1, keepdims=True))


def chosen_nll(log_probs: Any, tokens: list[int]) -> float:
    import numpy

    return float(-log_probs[numpy.arange(len(tokens) - 1), tokens[1:]].sum())


def greedy(og: Any, model: Any, prompt: list[int], count: int) -> list[int]:
    """The `count` likeliest tokens after a prompt, one by one; an end of text doesn't stop it."""
    generator = new_generator(og, model, max_length=len(prompt) + count, min_length=len(prompt) + count)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :]


def child_reference(request: dict[str, Any]) -> dict[str, Any]:
    """Write what bundles are compared with: a file of log-probabilities for each window of text, and greedy tokens.

    No more than one window is held. One whose file stands in `folder` already, from an attempt that was cut off, stays.
    """
    og, model, tokenizer, _ = load_model(request)
    ids = [int(token) for token in tokenizer.encode(request["text"])][: request["tokens"]]
    windows = text_windows(ids, request["window_tokens"])
    stepwise = last_logits_only(og, model)
    for index, tokens in enumerate(windows):
        path = Path(request["folder"]) / f"{index:05}.npz"
        if not path.is_file():
            write_window(path, log_probabilities(og, model, tokens, stepwise), tokens)
        progress("reference", index + 1, len(windows))
    continuations = []
    for prompt in cut_prompts(ids, request["prompts"], request["prompt_tokens"]):
        continuations.append({"prompt": prompt, "tokens": greedy(og, model, prompt, request["match_tokens"])})
        progress("reference, greedy", len(continuations), request["prompts"])
    return {"text_tokens": len(ids), "windows": windows, "continuations": continuations}


def write_window(path: Path, log_probs: Any, tokens: list[int]) -> None:
    """Half precision, with what must be exact beside it: the likeliest tokens and the text's own likelihood."""
    import numpy

    top, nll = log_probs.argmax(axis=-1), chosen_nll(log_probs, tokens)
    beside = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
    numpy.savez(beside, log_probs=log_probs.astype(numpy.float16), top=top, nll=nll)
    beside.replace(path)


def cut_prompts(ids: list[int], count: int, length: int) -> list[list[int]]:
    """`count` prompts spread evenly over a text; fewer when it is too short for them not to overlap."""
    count = min(count, len(ids) // length)
    return [ids[index * len(ids) // count :][:length] for index in range(count)]


def child_evaluate(request: dict[str, Any]) -> dict[str, Any]:
    """Compare a bundle with a reference's files. Returns raw values, one entry a window and one a prompt.

    KLD is KL(reference || bundle) in nats for every predicted token (Kullback and Leibler 1951).
    """
    og, model, _, _ = load_model(request)
    stepwise = last_logits_only(og, model)
    results, matches = [], []
    for index, window in enumerate(request["windows"]):
        tokens = window["tokens"]
        reference = read_window(window)
        results.append(compare(log_probabilities(og, model, tokens, stepwise), reference, tokens))
        progress("evaluate", index + 1, len(request["windows"]))
    for index, wanted in enumerate(request["continuations"]):
        found = greedy(og, model, wanted["prompt"], len(wanted["tokens"]))
        matches.append(common_prefix(found, wanted["tokens"]) / len(found))
        progress("greedy tokens", index + 1, len(request["continuations"]))
    return {"windows": results, "matches": matches, "stepwise": stepwise}


def read_window(window: dict[str, Any]) -> Any:
    """The arrays of a window's file, which has arrived whole."""
    import numpy

    path = ROOT / window["file"]
    if not path.is_file() or sha256_file(path) != window["sha256"]:
        message = "the reference's log-probabilities haven't arrived whole"
        raise AgentFailure("corrupt", message, "evaluate again: what is missing is sent afresh")
    with numpy.load(path) as file:
        return {name: file[name] for name in file.files}


def compare(found: Any, reference: Any, tokens: list[int]) -> dict[str, Any]:
    import numpy

    wanted = reference["log_probs"]
    if wanted.shape != found.shape:
        sizes = f"the reference knows {wanted.shape[1]} tokens, this bundle {found.shape[1]}"
        raise AgentFailure("bad_request", f"{sizes}: they aren't of one model")
    kld: list[float] = []
    for half, ours in zip(row_blocks(wanted), row_blocks(found)):  # noqa: B905  (Python 3.9 has no zip(strict=))
        rows = half.astype(numpy.float32)
        # Rounded probabilities don't add up to one. Normalized, what rounding leaves in KLD is of second order.
        normalize(rows)
        kld += (numpy.exp(rows) * (rows - ours)).sum(axis=-1).tolist()
    return {
        "nll": chosen_nll(found, tokens),
        "reference_nll": float(reference["nll"]),
        "kld": [round(value, 7) for value in kld],
        "same_top": int((found.argmax(axis=-1) == reference["top"]).sum()),
    }


def common_prefix(found: list[int], wanted: list[int]) -> int:
    pairs = enumerate(zip(found, wanted))  # noqa: B905  (Python 3.9 has no zip(strict=))
    return next((index for index, (a, b) in pairs if a != b), min(len(found), len(wanted)))


def child_score(request: dict[str, Any]) -> dict[str, Any]:
    """Answer a test harness's questions until stdin ends: one JSON line in, one event out."""
    og, model, tokenizer, _ = load_model(request)
    context = planned_context(request)
    stepwise = last_logits_only(og, model)
    begin = begin_token(request)
    for line in sys.stdin:
        question = json.loads(line)
        if question["kind"] == "generate":
            found = complete(og, model, tokenizer, question, context)
        else:
            head, tokens = encode_pair(tokenizer, question["context"], question["continuation"], begin)
            found = score(og, model, tokens, head, context - 1, stepwise)
        emit("event", dict(found, type="answer"))
    return {}


def begin_token(request: dict[str, Any]) -> int:
    """What a text without a context is predicted after."""
    text = (Path(request["model_folder"]) / "genai_config.json").read_text(encoding="utf-8")
    token: int = json.loads(text)["model"]["bos_token_id"]
    return token


def encode_pair(tokenizer: Any, context: str, continuation: str, begin: int) -> tuple[int, list[int]]:
    """How many tokens are given, and all of them. Blanks between the two belong to the continuation's first word."""
    kept = context.rstrip()
    tokens = [int(token) for token in tokenizer.encode(context + continuation)]
    head = len(tokenizer.encode(kept)) if kept else 0
    return (head, tokens) if head else (1, [begin, *tokens])


def score(og: Any, model: Any, tokens: list[int], head: int, limit: int, stepwise: bool) -> dict[str, Any]:
    """Log-likelihood in nats of the tokens after the first `head`, and whether each of them is the likeliest.

    What is longer than `limit` is read in windows: each token is predicted once, the last ones from a whole window.
    """
    total, likeliest, position = 0.0, True, head
    while position < len(tokens):
        first = max(0, min(position - 1, len(tokens) - limit))
        window = tokens[first : first + limit]
        rows = log_probabilities(og, model, window, stepwise)[position - first - 1 :]
        chosen = window[position - first :]
        total += float(rows[range(len(chosen)), chosen].sum())
        likeliest = likeliest and bool((rows.argmax(axis=-1) == chosen).all())
        position = first + len(window)
    return {"log_likelihood": total, "greedy": likeliest}


def complete(og: Any, model: Any, tokenizer: Any, question: dict[str, Any], context: int) -> dict[str, Any]:
    """Continue a text greedily until a stop text, the end of the answer or a number of tokens; the stop is cut off."""
    count = min(question["max_tokens"], context // 2)
    ids = [int(token) for token in tokenizer.encode(question["context"])][count - context :]
    generator = new_generator(og, model, max_length=len(ids) + count)
    generator.append_tokens(ids)
    stream = tokenizer.create_stream()
    text = ""
    while not generator.is_done():
        generator.generate_next_token()
        text += stream.decode(int(generator.get_next_tokens()[0]))
        ends = [text.index(stop) for stop in question["until"] if stop in text]
        if ends:
            return {"text": text[: min(ends)]}
    return {"text": text}


def child_measure(request: dict[str, Any]) -> dict[str, Any]:
    """Runs a second of an ONNX model (`kernel`, base64) with an input of the shape `input`."""
    import base64

    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings_of(request).get("threads") or usable_cores()
    session = onnxruntime.InferenceSession(
        base64.b64decode(request["kernel"]), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": numpy.full(request["input"], 0.5, dtype=numpy.float32)}
    return {"kernels_per_s": 1 / best_time_s(lambda: session.run(None, feed))}


def child_chat(request: dict[str, Any]) -> dict[str, Any]:
    """Answer turns until stdin ends. The KV cache of the common prefix is kept between turns."""
    og, model, tokenizer, load_ns = load_model(request)
    context = planned_context(request)
    emit("event", {"type": "ready", "load_ns": load_ns, "context_tokens": context})
    messages: list[dict[str, str]] = []
    generator = None
    for line in sys.stdin:
        turn = json.loads(line)
        if turn.get("system"):
            messages.insert(0, {"role": "system", "content": turn["system"]})
        messages.append({"role": "user", "content": turn["user"]})
        ids = fit_conversation(tokenizer, messages, context, turn["max_new_tokens"])
        submit = time.perf_counter_ns()
        generator = continue_from(og, model, generator, ids, context, request)
        text = answer(generator, tokenizer, len(ids), turn["max_new_tokens"], submit)
        messages.append({"role": "assistant", "content": text})
    return {}


def encode_conversation(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
    except Exception as exc:
        message = f"this model's chat template can't be used: {first_line(exc)}"
        raise AgentFailure("no_chat_template", message) from exc
    return [int(token) for token in tokenizer.encode(text)]


def fit_conversation(tokenizer: Any, messages: list[dict[str, str]], context: int, max_new_tokens: int) -> list[int]:
    """Token ids of the conversation; its oldest turns are forgotten when the planned context is too short."""
    room = context - min(max_new_tokens, context // 2)
    ids = encode_conversation(tokenizer, messages)
    forgotten = 0
    while len(ids) > room:
        first = 1 if messages[0]["role"] == "system" else 0
        if len(messages) - first <= 1:
            message = f"the prompt has {len(ids)} tokens, the planned context leaves room for {room}"
            raise AgentFailure("too_long", message)
        del messages[first : first + 2]
        forgotten += 1
        ids = encode_conversation(tokenizer, messages)
    if forgotten:
        emit("event", {"type": "forgot", "turns": forgotten})
    return ids


def continue_from(og: Any, model: Any, generator: Any, ids: list[int], context: int, request: dict[str, Any]) -> Any:
    """A generator that has read `ids`, reusing what the last one has in common with them."""
    emit("event", {"type": "prefill", "tokens": len(ids)})
    if generator is not None:
        known = [int(token) for token in generator.get_sequence(0)]
        common = min(common_prefix(known, ids), len(ids) - 1)
        try:
            generator.rewind_to(common)
            generator.append_tokens(ids[common:])
            return generator
        except Exception as exc:
            # Not every cache can be rewound (a sliding window's can't): read it all again.
            sys.stderr.write(f"no rewind: {first_line(exc)}\n")
    sampling = request.get("sampling") or {}
    generator = new_generator(og, model, settings_of(request), max_length=context, **sampling)
    generator.append_tokens(ids)
    return generator


def answer(generator: Any, tokenizer: Any, prompt_tokens: int, max_new_tokens: int, submit: int) -> str:
    """Generate one turn, a token event each piece; returns its text. Stamps count from `submit`."""
    stream = tokenizer.create_stream()
    pieces: list[str] = []
    stamps: list[int] = []
    while not generator.is_done() and len(stamps) < max_new_tokens:
        generator.generate_next_token()
        stamps.append(time.perf_counter_ns() - submit)
        piece = stream.decode(int(generator.get_next_tokens()[0]))
        if piece:
            pieces.append(piece)
            emit("event", {"type": "token", "text": piece})
    end = {"prompt_tokens": prompt_tokens, "token_ns": stamps, "stopped": generator.is_done()}
    emit("event", {"type": "turn_end", **end})
    return "".join(pieces)


OPS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "probe": op_probe,
    "missing": op_missing,
    "install": op_install,
    "activate": op_activate,
    "rollback": op_rollback,
    "deactivate": op_deactivate,
    "discard": op_discard,
    "releases": op_releases,
    "hold": op_hold,
    "verify": op_verify,
    "prune": op_prune,
    "provision": op_provision,
    "check": in_runtime,
    "reference": in_runtime,
    "evaluate": in_runtime,
    "bench": op_bench,
    "measure": op_measure,
    "chat": op_chat,
    "score": op_chat,
}
CHILD_OPS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "check": child_check,
    "bench": child_bench,
    "measure": child_measure,
    "chat": child_chat,
    "score": child_score,
    "reference": child_reference,
    "evaluate": child_evaluate,
}


def main() -> None:
    inner = os.environ.pop(CHILD_REQUEST, None)
    operations = OPS if inner is None else CHILD_OPS
    try:
        if inner is not None:
            text = Path(inner).read_text(encoding="utf-8")
            Path(inner).unlink()
        else:
            # Unbuffered, so that a conversation's later lines stay in the pipe for the child that reads them.
            with os.fdopen(0, "rb", buffering=0, closefd=False) as stdin:
                text = stdin.readline().decode("utf-8")
        request = json.loads(text)
        if not isinstance(request, dict) or request.get("protocol") != PROTOCOL or request.get("op") not in operations:
            raise AgentFailure("bad_request", f"unknown request: {text[:200]!r}")
        result = operations[request["op"]](request)
        if result is not None:
            emit("result", result)
    except AgentFailure as exc:
        emit("error", {"code": exc.code, "message": exc.message, "hint": exc.hint})
        sys.exit(1)
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            os._exit(1)  # the host has gone: nobody is left to tell
        code = "device_full" if exc.errno == errno.ENOSPC else "os"
        emit("error", {"code": code, "message": f"{exc.strerror}: {exc.filename or ROOT}", "hint": None})
        sys.exit(1)
    except MemoryError:
        emit("error", {"code": "child_died", "message": "out of memory", "hint": death_hint(SIGKILL)})
        sys.exit(1)
    except (KeyError, TypeError, ValueError) as exc:
        traceback.print_exc()
        emit("error", {"code": "bad_request", "message": f"{type(exc).__name__}: {exc}", "hint": None})
        sys.exit(1)


if __name__ == "__main__":
    main()
