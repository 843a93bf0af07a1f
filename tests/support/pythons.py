"""Pythons of devices: real ones under other names, and ones with a false version or no package index."""

from __future__ import annotations

import sys
from pathlib import Path

# The agent is started without the user's variables; these Pythons are changed by them.
HEED_VARIABLES = '[ "$1" = -E ] && shift'


def script(path: Path, *lines: str) -> Path:
    """Write a shell script that stands for a target's Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


def without_index(folder: Path) -> Path:
    """This Python, with a pip that finds no index."""
    variables = "export PIP_INDEX_URL=http://127.0.0.1:9/ PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS="
    return script(folder / "bare-python", variables, f'exec {sys.executable} "$@"')


def calling_itself(version: str, path: Path) -> Path:
    """This Python, which claims another version."""
    lie = path.with_name("lie")
    lie.mkdir(parents=True)
    (lie / "sitecustomize.py").write_text(f"import platform\nplatform.python_version = lambda: {version!r}\n")
    answer = f'[ "$1" = --version ] && echo Python {version} && exit'
    return script(path, answer, f"export PYTHONPATH={lie}", HEED_VARIABLES, f'exec {sys.executable} "$@"')


def real_python(path: Path) -> Path:
    """The Python that made this virtual environment, under another name."""
    return script(path, f'exec {sys._base_executable} "$@"')  # type: ignore[attr-defined]
