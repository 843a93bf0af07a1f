"""The limits that control groups set on this process: memory and processors, in versions 1 and 2.

Host and device read them by the same rules. Standard library only, Python 3.9 syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Optional

# Version 1 of control groups says "no limit" with the largest number of whole pages.
_NO_LIMIT = 1 << 62


class Mount(NamedTuple):
    """A hierarchy of groups: `controllers` is empty for version 2; `root` is the group that lies at `point`."""

    controllers: frozenset[str]
    root: str
    point: str


class MemoryLimit(NamedTuple):
    """The tightest limit on a process's memory, and the least that any of its limits leaves, in bytes."""

    limit_bytes: int
    left_bytes: int


def parse_mounts(text: str) -> list[Mount]:
    """/proc/self/mountinfo to the mounts of control groups; those of version 1 without a controller are left out."""
    found = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if not separator or len(left) < 5 or len(right) < 1:
            continue
        root, point = (re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text) for text in left[3:5])
        if right[0] == "cgroup2":
            found.append(Mount(frozenset(), root, point))
        elif right[0] == "cgroup" and len(right) > 2:
            controllers = frozenset(right[2].split(",")) & {"memory", "cpu"}
            if controllers:
                found.append(Mount(controllers, root, point))
    return found


def parse_cgroup(text: str) -> dict[str, str]:
    """/proc/self/cgroup to this process's group by controller; '' stands for version 2."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers or number == "0":
            found.update(dict.fromkeys(controllers.split(","), path))
    return found


def parse_limit(text: str) -> Optional[int]:
    """A limit of a control group in bytes; None for `max` and for version 1's number for no limit."""
    digits = text.strip()
    return int(digits) if digits.isdecimal() and int(digits) < _NO_LIMIT else None


def parse_reclaimable(text: str) -> int:
    """memory.stat to the bytes of page cache that the kernel gives up before it kills: files read once, and those read
    again, such as a model that was hashed before it is built."""
    found = {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE)}
    return sum(found.get(f"total_{name}", found.get(name, 0)) for name in ("inactive_file", "active_file"))


def parse_quota(quota: str, period: str) -> Optional[float]:
    """A quota and its period in microseconds, as the kernel writes them, to processors; None without a quota.

    Version 2 has both in one line, which is given as `quota.partition(" ")`.
    """
    if not quota.strip().isdecimal() or not period.strip().isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)


def own_groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Give the folders of this process's groups for a controller, up to the outermost that is seen, each with the
    version of its hierarchy.

    `root` is the folder that holds `proc` and `sys`. Inside a container the path may be the host's: then only the
    container's own group is mounted, at the top.
    """
    paths = parse_cgroup(read(root / "proc/self/cgroup"))
    for mount in parse_mounts(read(root / "proc/self/mountinfo")):
        if mount.controllers and controller not in mount.controllers:
            continue
        path = paths.get(controller if mount.controllers else "")
        if path is None:
            continue
        top = root / mount.point.lstrip("/")
        inner = path[len(mount.root.rstrip("/")) :] if (path + "/").startswith(mount.root.rstrip("/") + "/") else ""
        own = top / inner.strip("/") if ".." not in inner.split("/") else top
        for folder in (own, *own.parents):
            yield folder, 1 if mount.controllers else 2
            if folder == top:
                break


def memory_limit(root: Path) -> Optional[MemoryLimit]:
    """The limits on this process's memory, its own groups' and those around them; None without any.

    Above `memory.high` the kernel doesn't kill, but holds a process up until it has given memory back.
    """
    limits, rests = [], []
    for folder, version in own_groups(root, "memory"):
        names = ("memory.limit_in_bytes",) if version == 1 else ("memory.max", "memory.high")
        found = [limit for limit in (parse_limit(read(folder / name)) for name in names) if limit is not None]
        if not found:
            continue
        usage = read(folder / ("memory.usage_in_bytes" if version == 1 else "memory.current")).strip()
        used = (int(usage) if usage.isdecimal() else 0) - parse_reclaimable(read(folder / "memory.stat"))
        limits.append(min(found))
        rests.append(max(0, min(found) - max(0, used)))
    return MemoryLimit(min(limits), min(rests)) if limits else None


def processor_quota(root: Path) -> Optional[float]:
    """The processors that the quotas of this process's groups allow it at once, 0.5 for half of one; None without."""
    found = []
    for folder, version in own_groups(root, "cpu"):
        if version == 1:
            quota, period = read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")
        else:
            quota, _, period = read(folder / "cpu.max").partition(" ")
        allowed = parse_quota(quota, period)
        if allowed is not None:
            found.append(allowed)
    return min(found, default=None)


def whole_processors(affinity: int, quota: Optional[float]) -> int:
    """The number of threads that can really run at once: with more of them than its quota a process only waits for
    itself."""
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def read(path: Path) -> str:
    """A file's text, '' when it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
