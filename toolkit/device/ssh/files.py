"""The files of a target over SFTP, whatever carries the session."""

from __future__ import annotations

import posixpath
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import paramiko

from toolkit.catalog.remote_path import sftp_path
from toolkit.device.patience import Patience
from toolkit.device.ssh.internals import EXTENDED, OPEN, TO_CREATE, TO_TRUNCATE, TO_WRITE, sftp_request
from toolkit.device.ssh.upload import CHUNK_BYTES, PipelinedWrite
from toolkit.device.transport import End, Pace, device_full
from toolkit.errors import CorruptBundle, HostUnreachable, NoProgress, RemoteCommandFailed
from toolkit.untrusted import SLOWEST_BYTES_PER_S

# An answer to a request comes within that time; to a packet of an upload, within the time of its bytes besides.
ANSWER_S = 120.0
_UPLOAD_S = ANSWER_S + CHUNK_BYTES / SLOWEST_BYTES_PER_S


class SftpFiles(ABC):
    """The common part of transports with an SFTP session. `where` begins every message."""

    def __init__(self, where: str) -> None:
        self._where = where

    @abstractmethod
    def _files(self) -> Any:
        """The session, a paramiko.SFTPClient, which stays open. Raises RemoteCommandFailed when there is none."""

    @abstractmethod
    def _send_all(self, data: memoryview) -> None:
        """Write to the session's stream, after `_files` has been called."""

    @abstractmethod
    def _is_lost(self) -> bool: ...

    @abstractmethod
    def close(self) -> None: ...

    def put(
        self,
        source: Path,
        destination: str,
        offset: int = 0,
        end: End | None = None,
        pace: Pace | None = None,
    ) -> Iterator[int]:
        """Raises, besides the Protocol's errors, CorruptBundle when `source` can't be read, RemoteCommandFailed when
        the server refuses to write."""
        path = sftp_path(destination)
        patience = Patience(_UPLOAD_S, self.close)
        with _reading(source) as data, patience, self._translated(f"writing {path}", patience):
            total = source.stat().st_size
            data.seek(offset)
            with patience.waiting():
                if end is None:
                    self._refuse_if_full(path, total)
                opened = self._open(path, keep=offset > 0 or end is not None)
            with opened as file:
                upload = PipelinedWrite(self._files(), file, offset, self._send_all)
                try:
                    while count := _read(upload, data, end):
                        if pace is not None:
                            pace(count)
                        yield _counted(patience, partial(upload.write, count))
                    while upload.is_pending:
                        yield _counted(patience, upload.settle)
                except OSError as exc:
                    if not self._is_lost():
                        self._explain_full(path, total - upload.acknowledged, exc)
                    raise

    def _open(self, path: str, *, keep: bool) -> Any:
        """Open a file to write to, created for this user alone if there is none; with `keep` its content stays."""
        flags = TO_WRITE | TO_CREATE | (0 if keep else TO_TRUNCATE)
        private = paramiko.SFTPAttributes()
        private.st_mode = 0o600
        # Not with SFTPClient.open, which leaves the mode of a new file to the server.
        reply = sftp_request(self._files(), OPEN, path, flags, private)
        return paramiko.SFTPFile(self._files(), reply.get_binary(), "r+b", 0)

    def make_dirs(self, path: str) -> None:
        folder = sftp_path(path)
        with self._answering(f"creating {folder}"):
            missing = []
            while folder not in ("", "/") and self._mode(folder) is None:
                missing.append(folder)
                folder = posixpath.dirname(folder)
            for part in reversed(missing):
                self._files().mkdir(part, 0o700)
            mode = self._mode(sftp_path(path))
            if mode is None or not stat.S_ISDIR(mode):
                raise OSError("not a folder")

    def size(self, path: str) -> int | None:
        with self._answering(f"reading {path}"):
            return self._size(sftp_path(path))

    def _size(self, path: str) -> int | None:
        try:
            found = self._files().stat(path)
        except FileNotFoundError:
            return None
        return int(found.st_size) if stat.S_ISREG(found.st_mode) else None

    def _mode(self, path: str) -> int | None:
        try:
            return int(self._files().stat(path).st_mode)
        except FileNotFoundError:
            return None

    def _refuse_if_full(self, path: str, total: int) -> None:
        needs = total - (self._size(path) or 0)
        folder = posixpath.dirname(path) or "."
        free = self._free_bytes(folder)
        if free is not None and free < needs:
            raise device_full(self._where, needs, free, folder)

    def _explain_full(self, path: str, needs: int, exc: OSError) -> None:
        """Raise DeviceFull if the disk is full: SFTP only says `Failure`, so the server is asked for the free space."""
        folder = posixpath.dirname(path) or "."
        free = self._free_bytes(folder)
        if free is not None and free < needs:
            raise device_full(self._where, needs, free, folder) from exc

    def _free_bytes(self, folder: str) -> int | None:
        """The free bytes for this user; None where the server has no statvfs@openssh.com."""
        try:
            reply = sftp_request(self._files(), EXTENDED, "statvfs@openssh.com", folder)
        except OSError:
            return None
        _block_size, fragment_size, _blocks, _free, available = (reply.get_int64() for _ in range(5))
        return int(fragment_size * available)

    @contextmanager
    def _answering(self, action: str) -> Iterator[None]:
        """Close the connection when the block takes longer than an answer may."""
        with Patience(ANSWER_S, self.close) as patience, self._translated(action, patience), patience.waiting():
            yield

    @contextmanager
    def _translated(self, action: str, patience: Patience | None = None) -> Iterator[None]:
        try:
            yield
        except (paramiko.SSHException, EOFError, OSError, ValueError, AttributeError) as exc:
            if patience is not None and patience.is_over:
                hint = "its link or its disk may be too slow, or failing; the same command goes on where it stopped"
                raise NoProgress(f"{self._where}: no progress while {action}: no answer came in time", hint) from exc
            if isinstance(exc, paramiko.ChannelException):
                raise sessions_refused(self._where, exc.text) from exc
            if not isinstance(exc, (paramiko.SSHException, EOFError, OSError)):
                raise
            # EOFError comes from the socket itself, before the transport's thread has noticed.
            if isinstance(exc, EOFError) or self._is_lost():
                raise link_lost(self._where, action) from exc
            raise RemoteCommandFailed(f"{self._where}: {action} failed: {_reason(exc)}") from exc


def _counted(patience: Patience, step: Callable[[], int]) -> int:
    """The bytes that a step of an upload has brought; their time at the slowest rate is given again."""
    with patience.waiting():
        count = step()
    patience.renew(count / SLOWEST_BYTES_PER_S)
    return count


def link_lost(where: str, action: str) -> HostUnreachable:
    return HostUnreachable(
        f"{where}: the connection was lost while {action}",
        "is the device still on and in the network? The same command continues where this one stopped",
    )


def sessions_refused(where: str, reason: str) -> RemoteCommandFailed:
    return RemoteCommandFailed(
        f"{where}: the server refuses another session: {reason}",
        "close other sessions to it, or raise MaxSessions in its sshd_config",
    )


def no_sftp(where: str, reason: object) -> RemoteCommandFailed:
    hint = "install openssh-sftp-server there (Subsystem sftp in sshd_config)"
    if isinstance(reason, paramiko.SFTPError):  # something else came in place of its first packet
        hint = (
            "the login shell there must print nothing by itself; or set Subsystem sftp internal-sftp in sshd_config, "
            "which needs neither that shell nor openssh-sftp-server"
        )
    return RemoteCommandFailed(f"{where}: the server offers no SFTP session: {reason}", hint)


def _reason(exc: BaseException) -> str:
    reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return str(reason)[:1].lower() + str(reason)[1:]


@contextmanager
def _reading(source: Path) -> Iterator[FileIO]:
    try:
        data = source.open("rb", buffering=0)
    except OSError as exc:
        raise CorruptBundle(f"{source}: cannot be read: {exc.strerror}") from exc
    with data:
        yield data


def _read(upload: PipelinedWrite, data: FileIO, end: End | None) -> int:
    """Read the next bytes of the local file. Raises CorruptBundle, as its errors must not look like the link's."""
    try:
        left = CHUNK_BYTES if end is None else end(data.tell()) - data.tell()
        return upload.read(data, max(0, left))
    except OSError as exc:
        raise CorruptBundle(f"{data.name!s}: cannot be read: {exc.strerror}") from exc
