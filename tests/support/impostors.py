"""Devices on which something else answers in place of the agent."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.pythons import script
from toolkit.catalog import Target, load_profile
from toolkit.device import Device, open_transport


def make_target(root: Path, **changes: str) -> Target:
    facts = {"name": "here", "transport": "local", "profile": "local", "install_root": str(root)}
    return Target.model_validate(facts | changes)


def device_with_python(tmp_path: Path, text: str) -> Device:
    """A device whose `python` is a shell script."""
    python = script(tmp_path / "python-impostor", text)
    target = make_target(tmp_path / "root", python=str(python))
    return Device(target, load_profile("local"), open_transport(target), partial(open_transport, target))


def said(tmp_path: Path, kind: str, payload: Any) -> str:
    """A script that gives one message as its answer to every request."""
    file = tmp_path / "said"
    file.write_text(json.dumps({"protocol": 1, kind: payload}) + "\n")
    return f"cat {file}"


def impostor(tmp_path: Path, script: str) -> Device:
    """A device whose agent answers `settle` rightly, and runs the script for every other request."""
    (tmp_path / "settled").write_text('{"protocol": 1, "result": {"was_whole": true}}\n')
    return device_with_python(tmp_path, f"case $7 in *.tmp) exec cat {tmp_path / 'settled'};; esac\n{script}")
