"""Boards that aren't here: the agent's own probe, run on the files that such a board has (tests/data/probes)."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from toolkit.agent import AGENT_PATH

BOARDS = Path(__file__).parent / "data" / "probes"
Facts = dict[str, Any]


def load_agent() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("edgephi_agent", AGENT_PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def probe_of(board: str, folder: Path) -> Facts:
    """What the agent's probe says on `board`. `folder` is made, and takes the place of / and of the install root."""
    shutil.copytree(BOARDS / board, folder)
    root = folder / "home" / "pi" / ".edgephi"
    root.mkdir(parents=True, mode=0o700)
    _make_block_devices(folder)
    _make_tools(folder)
    agent = load_agent()
    known = json.loads((folder / "machine.json").read_text())
    windows = folder / "windows.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent, "SYSTEM", folder)
        patch.setattr(agent, "ROOT", root)
        patch.setenv("PATH", str(folder / "bin"))
        patch.setattr(platform, "machine", lambda: known["machine"])
        patch.setattr(platform, "system", lambda: known.get("system", "Linux"))
        patch.setattr(platform, "python_version", lambda: known["python"])
        patch.setattr(os, "confstr", lambda _name: known["libc"])
        if windows.exists():
            patch.setattr(agent, "windows_facts", lambda: agent.parse_windows(windows.read_text()))
        facts: Facts = agent.op_probe({})
    return facts


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
