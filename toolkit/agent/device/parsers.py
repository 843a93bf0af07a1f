"""Pure parsers: the text of a device's files and tools becomes facts. They are tested on captured outputs."""

from __future__ import annotations

import json
import re
from typing import Any

ISA_FEATURES = {
    "neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme", "fphp",
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16",
    "amx_int8", "amx_bf16",
}  # fmt: skip
PCI_VENDORS = {"1022": "AMD", "10de": "NVIDIA", "17cb": "Qualcomm", "8086": "Intel"}
# JetPack's first number by L4T's: for boards without the package that tells the exact version.
JETPACKS = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}


def program_arch(machine: str, platform: str, bits: int) -> str:
    """The architecture of the programs that a Python loads, e.g. x86_64, aarch64; `platform` as sysconfig tells it.

    The kernel's `machine` isn't it where programs of 32 bits run on a kernel of 64, nor on an ARM Windows that
    translates x86. On Linux sysconfig repeats the kernel's word, and only the size of a pointer tells.
    """
    kernel = machine.lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    if platform.startswith("win"):
        return {"win-amd64": "x86_64", "win-arm64": "aarch64", "win32": "i686"}.get(platform, kernel)
    return {"x86_64": "i686", "aarch64": "armv8l"}.get(kernel, kernel) if bits == 32 else kernel


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo to {name: bytes}."""
    fields = {}
    for line in text.splitlines():
        match = re.match(r"(\S+):\s+(\d+)( kB)?", line)
        if match:
            fields[match.group(1)] = int(match.group(2)) * (1024 if match.group(3) else 1)
    return fields


def parse_busy_ticks(text: str) -> int | None:
    """/proc/stat to the ticks that all processors together have worked, or were kept from it by other machines of a
    host (steal); None for other text.
    """
    match = re.match(r"cpu +(\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", text)
    if not match:
        return None
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, match.groups())
    return user + nice + system + irq + softirq + steal


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
    """`vcgencmd get_throttled` to its bits, e.g. {'under_voltage_now': False, ...}; None for other text.

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
    """/proc/self/mountinfo: number of the device, where it is mounted and how, file system and source, in order of
    mounting.
    """
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if separator and len(left) >= 5 and len(right) >= 2:
            # Blanks and the like stand as octal numbers.
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), left[4])
            mounts.append(
                {
                    "number": left[2],
                    "mount_point": point,
                    "options": ",".join(left[5:6]),
                    "file_system": right[0],
                    "source": right[1],
                }
            )
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
    """The kind of a block device, by its name, its path in /sys and, of an MMC one, the card's `type`."""
    if disk.startswith("mmcblk"):
        return "eMMC" if mmc_type == "MMC" else "SD card"
    if disk.startswith("nvme"):
        return "NVMe"
    for part, kind in (("/usb", "USB"), ("/ata", "SATA"), ("ufs", "UFS"), ("/virtio", "virtual")):
        if part in device_path:
            return kind
    return "virtual" if disk.startswith(("vd", "xvd", "loop", "zram", "ram")) else "other"


def parse_windows(text: str) -> dict[str, Any]:
    """The output of WINDOWS_FACTS to facts by the names that a probe gives them; {} for any other text."""
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
    """A device's name in Windows, with its maker before it where the name lacks that, as AMD's does."""
    match = re.match(r"PCI\\VEN_([0-9A-F]{4})", instance, re.IGNORECASE)
    vendor = PCI_VENDORS.get(match.group(1).lower(), "") if match else ""
    return name if not vendor or vendor.lower() in name.lower() else f"{vendor} {name}"


def parse_powercfg(text: str) -> str | None:
    """`powercfg /getactivescheme` to the scheme's name, which stands in brackets whatever the language."""
    match = re.search(r"\(([^()]+)\)\s*\Z", text)
    return match.group(1) if match else None


def parse_missing_library(text: str) -> str | None:
    """The dynamic loader's complaint to the library that is too old, e.g. glibc 2.34; None for another complaint."""
    match = re.search(r"version `(?:GLIBC_([\d.]+)|((?:GLIBCXX|CXXABI)_[\d.]+))' not found", text)
    if not match:
        return None
    return f"glibc {match.group(1)}" if match.group(1) else f"a libstdc++ with {match.group(2)}"


def parse_py_launcher(text: str) -> list[str]:
    """`py -0p` of Windows to the interpreters' paths; a star marks its default."""
    return re.findall(r"^\s*-\S+(?:\s+\*)?\s+(\S.*?\.exe)\s*$", text, re.MULTILINE)


def parse_status_kib(text: str, key: str) -> int | None:
    """A `kB` field of /proc/<pid>/status or smaps_rollup, in bytes; None when it isn't there."""
    match = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None
