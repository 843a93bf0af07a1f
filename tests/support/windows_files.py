"""The files of an SFTP server, with the rules of OpenSSH for Windows."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

import paramiko

from toolkit.emulate.embedded_files import FilesUnder, OpenFile, answering

_RESERVED = re.compile(r'(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[<>"|?*\x00-\x1f].*|.*[. ]', re.IGNORECASE)


def open_anywhere(path: Path) -> bool:
    """Tell if any process has this file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == path:
                return True
        except OSError:
            continue
    return False


class WindowsFiles(FilesUnder):
    """/C:/Users/edge is the folder C/Users/edge of the session's root; a relative path counts from the login folder.

    Names are matched whatever their case; no file is renamed over another, and no open file is renamed or removed.
    """

    def __init__(self, session: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(session, *args, **kwargs)
        self._home: str = session.home

    def canonicalize(self, path: str) -> str:
        full = os.path.normpath(path if path.startswith("/") else f"{self._home}/{path}")
        return "/" if full in ("/", "//") else full

    def _inside(self, path: str) -> Path:
        """The real path: each part is replaced by an existing name that differs at most in case."""
        parts = PurePosixPath(self.canonicalize(path)).parts[1:]
        if not parts:
            return self._root
        drive, *names = parts
        if not re.fullmatch("[A-Za-z]:", drive):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        found = self._root / drive[0].upper()
        for name in names:
            if name not in (".", "..") and _RESERVED.fullmatch(name):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            same = (
                (entry.name for entry in found.iterdir() if entry.name.lower() == name.lower())
                if found.is_dir()
                else ()
            )
            found = found / next(iter(same), name)
        return found

    _entry = _inside

    @answering
    def open(self, path: str, flags: int, attr: Any) -> OpenFile:  # noqa: ARG002
        file = self._inside(path)
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        if writes and file.exists() and not file.stat().st_mode & 0o222:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        # The mode that the client asks for is ignored.
        return OpenFile(os.open(file, flags, 0o600))

    @answering
    def mkdir(self, path: str, attr: Any) -> int:  # noqa: ARG002
        self._inside(path).mkdir(0o700)
        return int(paramiko.SFTP_OK)

    @answering
    def remove(self, path: str) -> int:
        file = self._inside(path)
        if open_anywhere(file) or not file.stat().st_mode & 0o222:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        file.unlink()
        return int(paramiko.SFTP_OK)

    @answering
    def rename(self, oldpath: str, newpath: str) -> int:
        old, new = self._inside(oldpath), self._inside(newpath)
        if new.exists() or open_anywhere(old):
            raise OSError(errno.EIO, "Failure")
        old.rename(new)
        return int(paramiko.SFTP_OK)

    def posix_rename(self, oldpath: str, newpath: str) -> int:  # noqa: ARG002
        return int(paramiko.SFTP_OP_UNSUPPORTED)
