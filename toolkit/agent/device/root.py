"""The install root's file system: whether it takes files, enough of them, and programs."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

# The runtime and a small bundle: a disk that can't reserve so much can't take a deployment.
RESERVED_BYTES = 500_000_000
# File systems that reserve blocks without writing them; others would write zeros, or take memory for it.
RESERVING = {"ext4", "xfs", "btrfs", "f2fs"}


def room(root: Path) -> dict[str, int | None]:
    """The free bytes, and the number of files that can still be made; None where the file system has no such bound."""
    files = None
    if hasattr(os, "statvfs"):
        status = os.statvfs(root)
        files = status.f_favail if status.f_files else None
    return {"free_disk_bytes": shutil.disk_usage(root).free, "free_files": files}


def root_access(root: Path, file_system: str | None) -> dict[str, Any]:
    """The errors of writing to the install root, of loading code there, and of reserving space, each None when there is
    none; the root's mode, and if this user owns it.

    A file is really made, without a name where the system can do that: permissions don't tell of read-only disks, nor
    mount options of everything that forbids programs, nor free space of the user's quota.
    """
    found: dict[str, Any] = dict.fromkeys(
        ("root_error", "root_exec_error", "root_room_error", "root_mode", "root_owned")
    )
    try:
        with tempfile.TemporaryFile(prefix=".probe-", dir=root) as file:
            found["root_exec_error"] = exec_error(file)
            if file_system in RESERVING and shutil.disk_usage(root).free > RESERVED_BYTES:
                found["root_room_error"] = room_error(file)
    except OSError as exc:
        found["root_error"] = exc.strerror or str(exc)
    if hasattr(os, "geteuid"):  # Windows has access control lists instead
        status = root.stat()
        found.update(root_mode=f"{status.st_mode & 0o7777:04o}", root_owned=status.st_uid == os.geteuid())
    return found


def exec_error(file: Any) -> str | None:
    """The error of loading code from a file, as the dynamic loader does with a library; None when there is none."""
    if sys.platform == "win32":
        return None
    file.write(b"\0" * mmap.PAGESIZE)
    file.flush()
    try:
        mmap.mmap(file.fileno(), mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
    except OSError as exc:
        return exc.strerror or str(exc)
    return None


def room_error(file: Any) -> str | None:
    """The error of reserving RESERVED_BYTES, which a quota of the user's gives though the disk has room; None without.

    It is the system's own call: Python's would write zeros where a file system can't reserve.
    """
    try:
        import ctypes

        reserve = ctypes.CDLL(None, use_errno=True).fallocate
    except (AttributeError, ImportError, OSError):  # another C library, or a small Python
        return None
    reserve.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if reserve(file.fileno(), 0, 0, RESERVED_BYTES) == 0:
        return None
    number = ctypes.get_errno()
    return os.strerror(number) if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None
