"""Every Python of the simulated Windows server imports this module, which refuses what Windows refuses with files.

Files that a process has open can't be removed, replaced or renamed, nor can folders with such files in them; read-only
files can't be removed or opened for writing; no file is renamed over another. Links between files can be
switched off, as on exFAT. The agent, and it alone, is also told that it runs on Windows.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys

_UNLINK, _RMDIR, _RENAME, _REPLACE, _LINK, _OPEN, _IO_OPEN = (
    os.unlink,
    os.rmdir,
    os.rename,
    os.replace,
    os.link,
    os.open,
    io.open,
)


def _refused(path):
    return PermissionError(errno.EACCES, "Permission denied", os.fspath(path))


def _open_files():
    """The files that any process has open or mapped into its memory."""
    for process in os.listdir("/proc"):
        if not process.isdigit():
            continue
        try:
            for number in os.listdir(f"/proc/{process}/fd"):
                yield os.readlink(f"/proc/{process}/fd/{number}")
            with _IO_OPEN(f"/proc/{process}/maps") as maps:
                for line in maps:
                    if "/" in line:
                        yield line[line.index("/") :].rstrip("\n")
        except OSError:
            continue  # the process has ended, or is another user's


def _in_use(path):
    path = os.path.realpath(path)
    return any(name == path or name.startswith(path + "/") for name in _open_files())


def _read_only(path):
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and not status.st_mode & 0o222


def _unlink(path, *, dir_fd=None):
    if os.path.isfile(path) and (_read_only(path) or _in_use(path)):
        raise _refused(path)
    _UNLINK(path)


def _replace(source, destination, **_kwargs):
    if _in_use(source):
        raise _refused(source)
    if os.path.isdir(destination) or (
        os.path.exists(destination) and (_read_only(destination) or _in_use(destination))
    ):
        raise _refused(destination)
    _REPLACE(source, destination)


def _rename(source, destination, **_kwargs):
    if os.path.lexists(destination):
        raise FileExistsError(errno.EEXIST, "File exists", os.fspath(destination))
    _replace(source, destination)


def _link(source, destination, **kwargs):
    if "EDGEPHI_TEST_NO_LINKS" in os.environ:
        # Python's translation of ERROR_INVALID_FUNCTION.
        raise OSError(errno.EINVAL, "Incorrect function", os.fspath(source))
    _LINK(source, destination, **kwargs)


def _open(path, flags, *args, **kwargs):
    if flags & (os.O_WRONLY | os.O_RDWR) and _read_only(path):
        raise _refused(path)
    return _OPEN(path, flags, *args, **kwargs)


def _io_open(file, mode="r", *args, **kwargs):
    if set(mode) & set("wa+") and not isinstance(file, int) and _read_only(file):
        raise _refused(file)
    return _IO_OPEN(file, mode, *args, **kwargs)


class _Msvcrt:
    """The part of `msvcrt` that locks bytes; as on Windows, closing a handle releases its locks."""

    LK_NBLCK = 2

    @staticmethod
    def locking(descriptor, mode, count):
        import fcntl

        assert mode == _Msvcrt.LK_NBLCK, "only tried, never waited for"
        assert os.lseek(descriptor, 0, os.SEEK_CUR) >= 1 << 20, "what is locked can't be read by anybody"
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _become_windows():
    import ctypes
    import platform
    import signal
    import subprocess  # noqa: F401  these choose their system when they are imported
    import sysconfig
    import tempfile  # noqa: F401

    sys.platform = "win32"
    sys.modules["msvcrt"] = _Msvcrt
    sys.stdout.reconfigure(newline="\r\n")
    platform.system = lambda: "Windows"
    platform.machine = lambda: "AMD64"
    sysconfig.get_platform = lambda: "win-amd64"
    sysconfig.get_config_var = lambda name: None
    platform.platform = lambda: "Windows-11-10.0.26100-SP0"
    ctypes.cdll.msvcrt = ctypes.CDLL(None)
    for name in ("confstr", "geteuid", "getloadavg", "posix_fadvise", "sched_getaffinity", "sysconf"):
        delattr(os, name)
    del signal.SIGKILL


os.unlink = os.remove = _unlink
os.replace, os.rename, os.link, os.open = _replace, _rename, _link, _open
io.open = _io_open
if any("/agent/agent-" in argument for argument in sys.orig_argv) and "EDGEPHI_AGENT_REQUEST_FILE" not in os.environ:
    _become_windows()
