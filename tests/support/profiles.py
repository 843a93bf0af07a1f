"""The text of profiles, as users write them."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import tomli_w

BOARD: dict[str, Any] = {
    "schema_version": 1,
    "description": "a board",
    "hardware": {
        "arch": "aarch64",
        "os": "linux",
        "ram": "8 GiB",
        "ram_reserved": "768 MiB",
        "cores": 4,
        "memory_bandwidth": "17 GB/s",
    },
    "runtime": {
        "provider": "cpu",
        "packages": ["onnxruntime-genai==0.18.0", "onnxruntime==1.32.0"],
        "platform_tags": ["manylinux_2_28_aarch64"],
        "python": ">=3.11,<3.15",
    },
    "defaults": {"recipe": "int4-rtn-b32", "context": 2048},
}


def write(name: str, table: dict[str, Any], folder: Path | None = None) -> Path:
    path = (folder or Path("profiles")) / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def write_own(name: str, table: dict[str, Any]) -> Path:
    """Write a profile among the user's own."""
    return write(name, table, Path(os.environ["EDGEPHI_CONFIG_DIR"], "profiles"))


def board(**changes: Any) -> dict[str, Any]:
    """BOARD with `section__key=value` changes; None removes the key."""
    table = copy.deepcopy(BOARD)
    for dotted, value in changes.items():
        *sections, key = dotted.split("__")
        inner = table
        for section in sections:
            inner = inner.setdefault(section, {})
        if value is None:
            del inner[key]
        else:
            inner[key] = value
    return table
