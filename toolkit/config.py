"""Places on this machine: the user's folders, the data that comes with edgephi, and a path as messages name it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent


def _user_dir(variable: str, kind: str) -> Path:
    from platformdirs import PlatformDirs

    override = os.environ.get(variable)
    if override:
        return Path(override).expanduser()
    return Path(getattr(PlatformDirs("edgephi", appauthor=False), f"user_{kind}_dir"))


def config_dir() -> Path:
    """The user's own profiles, targets and recipes. `EDGEPHI_CONFIG_DIR` overrides it."""
    return _user_dir("EDGEPHI_CONFIG_DIR", "config")


def cache_dir() -> Path:
    """Builds, bundles, wheels: all of it can be made again. `EDGEPHI_CACHE_DIR` overrides it."""
    return _user_dir("EDGEPHI_CACHE_DIR", "cache")


def data_dir() -> Path:
    """Reports and logs: measurements that can't be made again. `EDGEPHI_DATA_DIR` overrides it."""
    return _user_dir("EDGEPHI_DATA_DIR", "data")


def data_path(name: str) -> Path:
    """A file or folder of `toolkit/data`, which comes with every installation."""
    return _PACKAGE / "data" / name


def import_root() -> Path:
    """The folder from which a child process imports this very `toolkit`."""
    return _PACKAGE.parent


@cache
def shipped_dir(name: str) -> Path:
    """Folder `name` (profiles, targets, workloads, recipes, boards) that came with edgephi.

    A wheel carries the top-level folders under `toolkit/_shipped`; a checkout has them beside the package.
    """
    if name in ("recipes", "boards"):
        return data_path(name)
    installed = _PACKAGE / "_shipped" / name
    if installed.is_dir():
        return installed
    return _PACKAGE.parent / {"workloads": "benchmarks/workloads"}.get(name, name)


def shown(path: Path) -> str:
    """A path as messages name it: relative where it lies below the working folder."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def is_path(word: str) -> bool:
    """Tell if a word of a command line is a path, rather than the name of a thing that edgephi keeps."""
    return "/" in word or os.sep in word or word in (".", "..")


def suggestion(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
