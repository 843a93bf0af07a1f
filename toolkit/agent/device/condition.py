"""The condition of a device, which changes while it works: memory, temperature, the clock's governor, throttling."""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Any

from toolkit.localhost.groups import MemoryLimit, memory_limit, processor_quota, whole_processors

from . import reading
from .parsers import (
    parse_busy_ticks,
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


def memory_available_bytes(*, limited: bool = True) -> int | None:
    """The memory that this process can still have: the device's, or, if `limited`, the rest of a limit that is less."""
    available = parse_meminfo(read_text("/proc/meminfo")).get("MemAvailable")
    limit = own_memory_limit() if limited else None
    return available if limit is None or available is None else min(available, limit.left_bytes)


def own_memory_limit() -> MemoryLimit | None:
    """The limit that control groups or `ulimit -v` set on this process and its children; None without any."""
    found = memory_limit(reading.SYSTEM)
    if sys.platform == "win32":
        return found
    import resource

    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY:
        return found
    limits = [MemoryLimit(most, most), *([found] if found else [])]
    return MemoryLimit(min(one.limit_bytes for one in limits), min(one.left_bytes for one in limits))


def usable_cores() -> int:
    """Whole processors that this process may use: a container, a quota or taskset may leave fewer than there are."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return whole_processors(affinity, cpu_quota())


def cpu_quota() -> float | None:
    """The processors that this process may use at once by its groups' quotas, e.g. 0.5; None without a quota."""
    return processor_quota(reading.SYSTEM)


class Others:
    """The share of all processors' time that other programs take while this process and its children work."""

    def __init__(self) -> None:
        self._busy_s, self._own_s, self._started = _busy_s(), _own_s(), time.monotonic()

    def share(self) -> float | None:
        """The share from 0 to 1 since this was made, other machines on the same host included; None where nothing
        tells it.
        """
        busy_s, elapsed_s = _busy_s(), time.monotonic() - self._started
        if busy_s is None or self._busy_s is None or elapsed_s <= 0:
            return None
        others_s = (busy_s - self._busy_s) - (_own_s() - self._own_s)
        return min(1.0, max(0.0, others_s / elapsed_s / (os.cpu_count() or 1)))


def _busy_s() -> float | None:
    ticks = parse_busy_ticks(read_text("/proc/stat"))
    return ticks / os.sysconf("SC_CLK_TCK") if ticks is not None and hasattr(os, "sysconf") else None


def _own_s() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


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
