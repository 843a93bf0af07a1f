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

BOARDS = DATA / "probes"
Facts = dict[str, Any]


def probe_of(board: str, folder: Path) -> Facts:
    """What the agent's probe says on `board`. `folder` is made, and takes the place of / and of the install root."""
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
        found: Facts = facts.op_probe({})
    return found


def _make_block_devices(folder: Path) -> None:
    """/sys/dev/block and /sys/class/block from the lines of the board's `block`."""
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
    """Commands that print what the files in `tools` hold."""
    (folder / "bin").mkdir()
    for output in (folder / "tools").glob("*"):
        command = folder / "bin" / output.name
        command.write_text(f"#!/bin/sh\nexec /bin/cat '{output}'\n")
        command.chmod(0o755)
