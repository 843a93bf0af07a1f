"""Emulated machines that never start."""

from __future__ import annotations

from pathlib import Path

from tests.power.kernel import Kernel
from toolkit.emulate import State
from toolkit.emulate.boards import boards_dir


def board(name: str, **fields: object) -> State:
    """A board that was started once, with files of its own."""
    state = State.model_validate(
        {"name": name, "board": "raspberry-pi-5", "profile": "raspberry-pi-5-8gb", "port": 2222} | fields
    )
    folder = boards_dir() / name
    (folder / "home" / "pi").mkdir(parents=True)
    (folder / "home" / "pi" / "file").write_bytes(b"x" * 1000)
    (folder / "state.json").write_text(state.model_dump_json())
    return state


def files_of(folder: Path) -> tuple[Kernel, Path]:
    """A kernel that does nothing, and an empty disk."""
    (folder / "modules").mkdir()
    for name in ("image", "busybox", "disk"):
        (folder / name).write_bytes(bytes(1 << 20))
    return Kernel(folder / "image", folder / "modules", folder / "busybox"), folder / "disk"
