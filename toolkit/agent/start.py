"""This part comes with each command that starts the agent: it looks at what it is to start, from outside.

Its arguments are the path of the agent's file, and the SHA-256 that the host expects of it: `-` to look at the folders
alone, nothing to take any content. It refuses folders and files that somebody else could have put there or could
exchange, and content that isn't the host's; only then does it run the file. Standard library only, Python 3.9 syntax.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import NoReturn

FOLDERS_ALONE = "-"
_AGAIN = "run the command again: the agent is sent afresh"
# User numbers below belong to the system, on Linux.
_FIRST_PERSON = 1000


def start(name: str, sha256: str) -> None:
    given = Path(name).expanduser().absolute()
    root = given.parents[2].resolve() / given.parents[1].name
    agents = root / given.parent.name
    path = agents / given.name
    if hasattr(os, "geteuid"):  # Windows has access control lists instead
        _refuse_open_way(root)
        for folder in (root, agents):
            if os.path.lexists(folder):
                _refuse_strange(folder.lstat(), folder, root)
    if sha256 == FOLDERS_ALONE:
        print(json.dumps({"protocol": 1, "result": {}}))
        return
    content = _read(path, root)
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        _refuse("damaged_agent", f"{path} isn't the agent that was sent there: it has another SHA-256", _AGAIN)
    sys.argv = [str(path)]
    sys.path.insert(0, str(path))
    importlib.import_module("edgephi_agent.main").main()


def _read(path: Path, root: Path) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if path.is_symlink():
        _refuse_strange(path.lstat(), path, root)
    try:
        descriptor = os.open(path, flags)
    except OSError as exc:
        _refuse("damaged_agent", f"{path}: {exc.strerror}", _AGAIN)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if hasattr(os, "geteuid"):
            _refuse_strange(status, path, root)
        if not stat.S_ISREG(status.st_mode):
            _refuse("exposed_root", f"{path} isn't a file", "on the device: look at what lies there, and remove it")
        return file.read()


def _refuse_open_way(root: Path) -> None:
    """Refuse a root whose place others can give to another folder: through a folder above it that they can write to."""
    for folder in root.parents:
        status = folder.lstat() if os.path.lexists(folder) else None
        if status and status.st_mode & stat.S_IWOTH:
            sticky = status.st_mode & stat.S_ISVTX
            if not sticky or (status.st_uid >= _FIRST_PERSON and status.st_uid != os.geteuid()):
                message = f"{folder}, above {root}, can be written to by everybody (mode {_mode(status)})"
                hint = f"on the device: chmod o-w {folder}; or set install_root to a folder elsewhere"
                _refuse("exposed_root", message, hint)


def _refuse_strange(status: os.stat_result, path: Path, root: Path) -> None:
    look = "on the device: look at what lies there, "
    other = "; or set install_root to a folder of your own"
    if status.st_uid != os.geteuid():
        _refuse("exposed_root", f"{path} belongs to somebody else", f"{look}and have its owner remove it{other}")
    if stat.S_ISLNK(status.st_mode):
        there = f"; or set install_root to {path.resolve()}" if path == root else ""
        _refuse("exposed_root", f"{path} is a link", f"{look}and remove it{there}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = 700 if stat.S_ISDIR(status.st_mode) else 600
        message = f"{path} can be written to by others (mode {_mode(status)})"
        _refuse("exposed_root", message, f"{look}then chmod {mode} {path}{other}")


def _mode(status: os.stat_result) -> str:
    return format(stat.S_IMODE(status.st_mode), "04o")


def _refuse(code: str, message: str, hint: str) -> NoReturn:
    print(json.dumps({"protocol": 1, "error": {"code": code, "message": message, "hint": hint}}))
    sys.exit(1)
