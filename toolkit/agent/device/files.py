"""Moving, linking and removing files, in which systems differ.

Windows refuses to move or remove a file while a program has it open: a scanner for a moment, a chat for hours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from .protocol import AgentFailure

PATIENCE_S = 3.0
POLL_S = 0.1
# Windows' own limit, without the zero at the end.
LONGEST_PATH = 259
# The errors of file systems without hard links: exFAT under Linux and, the last one, under Windows.
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EINVAL}


def fsync_path(path: Path) -> None:
    """Flush a file or a folder to the disk. Windows can't open folders: its rename is journaled."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename a file over another, or a folder to a name that is free."""
    patiently(lambda: source.replace(target), source)


def remove(path: Path) -> None:
    """Remove a file, or as much of a folder as can be removed; a missing path is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        patiently(lambda: path.unlink(missing_ok=True), path)


def patiently(action: Callable[[], object], path: Path) -> None:
    """Run an action, on Windows again for a while when the file is open. Raises AgentFailure when it stays open."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            action()
            return
        except PermissionError as exc:
            if sys.platform != "win32":
                raise
            if time.monotonic() > deadline:
                hint = "end what uses it there (a chat, a benchmark), then run the command again"
                raise AgentFailure("in_use", f"a program on the device has {path} open", hint) from exc
        time.sleep(POLL_S)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError as exc:
        if exc.errno not in NO_LINKS:
            raise
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """Make a second file with the same content, flushed to the disk and read-only."""
    shutil.copyfile(source, target)
    fsync_path(target)
    seal(target)


def seal(path: Path) -> None:
    """Make a file read-only; not on Windows, which then wouldn't remove any of the file's names."""
    if sys.platform != "win32":
        # Another user's file, hard-linked by a local push, is read-only already, and exFAT knows no modes.
        with contextlib.suppress(PermissionError):
            path.chmod(0o444)


def refuse_long_paths(paths: Iterable[str]) -> None:
    """Raise AgentFailure beforehand when Windows would refuse one of the paths for its length."""
    if sys.platform != "win32" or long_paths_allowed():
        return
    longest = max(paths, key=len, default="")
    if len(longest) > LONGEST_PATH:
        raise AgentFailure(
            "path_too_long",
            f"Windows allows paths of {LONGEST_PATH} characters, this one has {len(longest)}: {longest}",
            "set install_root in the target's file to a shorter folder, like 'C:/edgephi'; or allow long paths there: "
            "LongPathsEnabled = 1 in HKLM\\SYSTEM\\CurrentControlSet\\Control\\FileSystem",
        )


def long_paths_allowed() -> bool:
    try:
        import winreg

        key = r"SYSTEM\CurrentControlSet\Control\FileSystem"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as folder:  # type: ignore[attr-defined,unused-ignore]
            value = winreg.QueryValueEx(folder, "LongPathsEnabled")[0]  # type: ignore[attr-defined,unused-ignore]
            return bool(value)
    except (ImportError, OSError):
        return False
