"""Control groups with real limits, for programs that are started in them; in whichever version this machine has."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from toolkit.localhost.groups import parse_cgroup, parse_mounts

PERIOD_US = 100_000


def _place(controller: str) -> tuple[Path, int]:
    """The folder of this process's own group, and the version of its hierarchy; skips the test where none takes
    limits."""
    paths = parse_cgroup(Path("/proc/self/cgroup").read_text())
    for mount in parse_mounts(Path("/proc/self/mountinfo").read_text()):
        own = Path(mount.point) / paths.get(controller if mount.controllers else "", "/").lstrip("/")
        if controller in mount.controllers and os.access(own, os.W_OK):
            return own, 1
        allowed = own / "cgroup.subtree_control"
        if not mount.controllers and allowed.exists() and controller in allowed.read_text().split():
            return own, 2
    pytest.skip(f"no control group here takes a limit on {controller}, or this isn't root")


@contextmanager
def group(controller: str, limit: float) -> Iterator[str]:
    """Make a group with a limit, in bytes or processors; give the line of a shell script that enters it."""
    parent, version = _place(controller)
    folder = parent / f"edgephi-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    quota = f"{round(limit * PERIOD_US)}"
    files = {
        ("memory", 1): {"memory.limit_in_bytes": f"{round(limit)}"},
        ("memory", 2): {"memory.max": f"{round(limit)}"},
        ("cpu", 1): {"cpu.cfs_period_us": f"{PERIOD_US}", "cpu.cfs_quota_us": quota},
        ("cpu", 2): {"cpu.max": f"{quota} {PERIOD_US}"},
    }[controller, version]
    try:
        for name, text in files.items():
            (folder / name).write_text(text)
        # A group inside it, without a limit of its own: those around a process count too.
        inner = folder / "inner"
        inner.mkdir()
        yield f"echo $$ > {inner}/cgroup.procs"
    finally:
        for path in (folder / "inner", folder):
            path.rmdir()
