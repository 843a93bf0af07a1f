"""Boards that aren't here: the agent's own probe, run on the files that such a board has (tests/data/probes)."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import DATA
from toolkit.agent.device import facts, parsers, reading
from toolkit.catalog import ProbeFacts

BOARDS = DATA / "probes"
_PI5 = {
    "board": "Raspberry Pi 5 Model B Rev 1.0",
    "soc": "bcm2712",
    "arch": "aarch64",
    "kernel_arch": "aarch64",
    "os": "linux",
    "os_name": "Debian GNU/Linux 12 (bookworm)",
    "kernel": "6.6.31+rpt-rpi-2712",
    "libc": "glibc 2.36",
    "glibc": "2.36",
    "cpu": None,
    "isa": ["asimd", "asimddp", "asimdhp", "fphp"],
    "cores": 4,
    "cpu_quota": None,
    "ram_bytes": 8258128 * 1024,
    "memory_limit_bytes": None,
    "mem_available_bytes": 7617008 * 1024,
    "free_disk_bytes": 20_000_000_000,
    "free_files": 1_800_000,
    "storage": "SD card",
    "storage_device": "mmcblk0",
    "file_system": "ext4",
    "mount_point": "/",
    "mount_options": "rw,noatime",
    "python": "3.11.2",
    "python_bits": 64,
    "python_platform": "aarch64-linux-gnu",
    "has_ensurepip": True,
    "jetson": None,
    "cuda": None,
    "accelerators": [],
    "governor": "ondemand",
    "governor_driver": "cpufreq-dt",
    "power_mode": None,
    "power_modes": {},
    "rails_mw": {},
    "temp_c": 51.8,
    "throttled": {"under_voltage_now": False},
    "load_average": [0.1, 0.2, 0.3],
    "clock_unix_s": 1_767_225_600.0,
    "emulated": None,
    "install_root": "/home/pi/.edgephi",
    "root_error": None,
    "root_exec_error": None,
    "root_room_error": None,
    "root_mode": "0700",
    "root_owned": True,
}


def pi5_facts(**changes: Any) -> ProbeFacts:
    """The facts of a Raspberry Pi 5 in good health, with some of them changed."""
    return ProbeFacts.model_validate(_PI5 | changes)


def probe_of(board: str, folder: Path) -> ProbeFacts:
    """The facts that the agent's probe finds on `board`; `folder` as in `payload_of`."""
    return ProbeFacts.model_validate(payload_of(board, folder))


def payload_of(board: str, folder: Path) -> dict[str, Any]:
    """The agent's answer on `board`. It makes `folder`, which stands for / and for the install root."""
    shutil.copytree(BOARDS / board, folder)
    root = folder / "home" / "pi" / ".edgephi"
    root.mkdir(parents=True, mode=0o700)
    _make_block_devices(folder)
    _make_tools(folder)
    known = json.loads((folder / "machine.json").read_text())
    windows = folder / "windows.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "SYSTEM", folder)
        patch.setattr(facts, "ROOT", root)
        patch.setenv("PATH", str(folder / "bin"))
        patch.setattr(platform, "machine", lambda: known["machine"])
        patch.setattr(platform, "system", lambda: known.get("system", "Linux"))
        patch.setattr(platform, "python_version", lambda: known["python"])
        patch.setattr(os, "confstr", lambda _name: known["libc"])
        if windows.exists():
            patch.setattr(facts, "windows_facts", lambda: parsers.parse_windows(windows.read_text()))
        return facts.op_probe({})


def _make_block_devices(folder: Path) -> None:
    """Make /sys/dev/block and /sys/class/block from the lines of the board's `block`."""
    listing = folder / "block"
    if not listing.exists():
        return
    lines = [line.split() for line in listing.read_text().splitlines()]
    for number, path, *card in (line for line in lines if line[1] != ">"):
        device = folder / "sys" / path
        device.mkdir(parents=True)
        if device.parent.name != "block":
            (device / "partition").write_text("1\n")
        if card:
            (device.parent / "device").mkdir()
            (device.parent / "device" / "type").write_text(card[0] + "\n")
        _link(folder / "sys/dev/block" / number, device)
        _link(folder / "sys/class/block" / device.name, device)
    for above, _, below in (line for line in lines if line[1] == ">"):
        mapper = folder / "sys/devices/virtual/block" / above
        mapper.mkdir(parents=True, exist_ok=True)
        (mapper / "slaves").mkdir()
        lower = folder / "sys/devices/virtual/block" / below
        known = folder / "sys/class/block" / below
        if not known.exists():
            lower.mkdir(parents=True, exist_ok=True)
        (mapper / "slaves" / below).symlink_to(known if known.exists() else lower)


def _link(link: Path, to: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(to)


def _make_tools(folder: Path) -> None:
    """Make commands that print the content of the files in `tools`."""
    (folder / "bin").mkdir()
    for output in (folder / "tools").glob("*"):
        command = folder / "bin" / output.name
        command.write_text(f"#!/bin/sh\nexec /bin/cat '{output}'\n")
        command.chmod(0o755)
