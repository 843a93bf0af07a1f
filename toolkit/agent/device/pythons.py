"""The other Pythons of this device: the one that the agent runs with may not suit the runtime."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .parsers import parse_py_launcher
from .reading import run_tool

# The folders where systems, uv, pyenv and conda put Pythons; a shell that isn't a login shell has few in its PATH.
PYTHON_FOLDERS = ("/usr/local/bin", "/usr/bin", "/opt/homebrew/bin", "/opt/conda/bin", "~/.local/bin")
PYTHON_PLACES = (
    ".pyenv/versions/*/bin/python3",
    ".local/share/uv/python/*/bin/python3",
    "miniconda3/bin/python3",
    "AppData/Roaming/uv/python/*/python.exe",
    ".pyenv/pyenv-win/versions/*/python.exe",
)
# It prints nothing for a Python that can't hold the runtime: not CPython, 32 bits, free-threaded, a preview, a venv.
PYTHON_FACTS = """
import json, sys, sysconfig
from importlib.util import find_spec
if (sys.implementation.name == "cpython" and sys.maxsize > 2**32 and not sysconfig.get_config_var("Py_GIL_DISABLED")
        and sys.version_info[3] == "final" and sys.prefix == sys.base_prefix and find_spec("venv")):
    print(json.dumps({"path": sys.executable.replace("\\\\", "/"), "version": "%d.%d.%d" % sys.version_info[:3],
                      "has_ensurepip": find_spec("ensurepip") is not None}))
"""


def op_pythons(_request: dict[str, Any]) -> dict[str, Any]:
    """Every CPython of this device that a runtime could be made with."""
    found: dict[str, dict[str, Any]] = {}
    for path in python_candidates():
        told = run_tool(str(path), "-I", "-c", PYTHON_FACTS)
        if told:
            facts = json.loads(told)
            found.setdefault(os.path.realpath(facts["path"]), facts)
    return {"pythons": list(found.values())}


def python_candidates() -> list[Path]:
    folders = [*os.environ.get("PATH", "").split(os.pathsep), *PYTHON_FOLDERS]
    names = ["python3", *(f"python3.{minor}" for minor in range(10, 15))]
    named = [Path(folder).expanduser() / name for folder in folders if folder for name in names]
    home = Path.home()
    placed = [path for place in PYTHON_PLACES for path in sorted(home.glob(place))]
    launched = [Path(path) for path in parse_py_launcher(run_tool("py", "-0p"))]
    return [path for path in dict.fromkeys([*named, *placed, *launched]) if path.is_file()]
