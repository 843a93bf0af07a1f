"""The embedded server's SFTP side: the files under one folder, and nothing else."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import paramiko
from paramiko import SFTP_OK

P = ParamSpec("P")
T = TypeVar("T")


def answering(method: Callable[P, T]) -> Callable[P, T | int]:
    """Turn an OSError into the SFTP status that paramiko wants returned."""

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T | int:
        try:
            return method(*args, **kwargs)
        except OSError as exc:
            return int(paramiko.SFTPServer.convert_errno(exc.errno))

    return wrapper


class OpenFile(paramiko.SFTPHandle):  # type: ignore[misc]
    """One open file by its descriptor."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    @answering
    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    @answering
    def write(self, offset: int, data: bytes) -> int:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written
        return int(SFTP_OK)

    @answering
    def stat(self) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self._descriptor))

    @answering
    def chattr(self, attr: Any) -> int:
        if attr.st_size is not None:
            os.ftruncate(self._descriptor, attr.st_size)
        if attr.st_mode is not None:
            os.fchmod(self._descriptor, attr.st_mode)
        return int(SFTP_OK)


class FilesUnder(paramiko.SFTPServerInterface):  # type: ignore[misc]
    """Relative paths count from the session's root; absolute ones, and links, must stay inside it."""

    def __init__(self, session: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(session, *args, **kwargs)
        self._root: Path = session.root

    def canonicalize(self, path: str) -> str:
        return os.path.normpath(self._root / path)

    @answering
    def open(self, path: str, flags: int, attr: Any) -> OpenFile:
        mode = 0o666 if attr.st_mode is None else attr.st_mode
        return OpenFile(os.open(self._inside(path), flags, mode))

    @answering
    def stat(self, path: str) -> Any:
        return paramiko.SFTPAttributes.from_stat(self._inside(path).stat())

    @answering
    def lstat(self, path: str) -> Any:
        return paramiko.SFTPAttributes.from_stat(self._entry(path).lstat())

    @answering
    def list_folder(self, path: str) -> list[Any]:
        return [paramiko.SFTPAttributes.from_stat(entry.lstat(), entry.name) for entry in self._inside(path).iterdir()]

    @answering
    def mkdir(self, path: str, attr: Any) -> int:
        self._inside(path).mkdir(0o777 if attr.st_mode is None else attr.st_mode)
        return int(SFTP_OK)

    @answering
    def rmdir(self, path: str) -> int:
        self._entry(path).rmdir()
        return int(SFTP_OK)

    @answering
    def remove(self, path: str) -> int:
        self._entry(path).unlink()
        return int(SFTP_OK)

    @answering
    def rename(self, oldpath: str, newpath: str) -> int:
        # SFTP's plain rename never replaces.
        if self._entry(newpath).exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._entry(oldpath).rename(self._entry(newpath))
        return int(SFTP_OK)

    @answering
    def posix_rename(self, oldpath: str, newpath: str) -> int:
        self._entry(oldpath).replace(self._entry(newpath))
        return int(SFTP_OK)

    def _inside(self, path: str) -> Path:
        """The real path behind all links. Raises PermissionError outside the root."""
        real = (self._root / path).resolve()
        if not real.is_relative_to(self._root):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real

    def _entry(self, path: str) -> Path:
        """The folder entry itself, which may be a link, in a folder inside the root."""
        full = self._root / path
        return self._inside(str(full.parent)) / full.name
