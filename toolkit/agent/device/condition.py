"""The condition of a device, which changes while it works: memory, temperature, the clock's governor, throttling."""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Any

from .parsers import (
    parse_meminfo,
    parse_nvpmodel,
    parse_nvpmodel_conf,
    parse_powercfg,
    parse_tegrastats,
    parse_throttled,
)
from .reading import first_output_line, read_text, run_tool, system_path


def temperature_c() -> float | None:
    """The hottest thermal zone in degrees Celsius, None where there is none."""
    readings = [read_text(path) for path in system_path("/sys/class/thermal").glob("thermal_zone*/temp")]
    values = [int(text) / 1000 for text in readings if re.match(r"-?\d+\Z", text)]
    return max(values) if values else None


def throttle_flags() -> dict[str, bool] | None:
    return parse_throttled(run_tool("vcgencmd", "get_throttled"))


def memory_available_bytes() -> int | None:
    return parse_meminfo(read_text("/proc/meminfo")).get("MemAvailable")


def usable_cores() -> int:
    """Cores that this process may use: a container or taskset may leave fewer than the device has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def power_mode() -> str | None:
    """The power mode of a Jetson or laptop: `nvpmodel`'s, the firmware's platform profile, or Windows' power scheme."""
    if sys.platform == "win32":
        return parse_powercfg(run_tool("powercfg", "/getactivescheme"))
    return parse_nvpmodel(run_tool("nvpmodel", "-q")) or read_text("/sys/firmware/acpi/platform_profile") or None


def condition(board: dict[str, str | None] | None) -> dict[str, Any]:
    """The facts that decide how fast the device is just now. `board` is the answer of `jetson`."""
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
