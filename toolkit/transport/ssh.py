"""SSH to a target with paramiko: commands over channels, files over one SFTP session."""

from __future__ import annotations

import posixpath
import shlex
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import paramiko
from paramiko.common import cMSG_CHANNEL_REQUEST
from paramiko.sftp import CMD_EXTENDED

from toolkit.errors import CorruptBundle, HostKeyChanged, HostUnreachable, RemoteCommandFailed
from toolkit.transport import End, Pace, PromptSecret
from toolkit.transport.failures import device_full
from toolkit.transport.known_hosts import append_known_host, fingerprint, host_names
from toolkit.transport.sftp_upload import CHUNK_BYTES, Upload
from toolkit.transport.ssh_auth import log_in
from toolkit.transport.ssh_config import SshTarget, resolve
from toolkit.transport.ssh_link import connected, host_key_changed, known_keys, verify_host_key
from toolkit.transport.streams import Feeder, Tail, split_lines

_OPEN_TIMEOUT_S = 20
_KILL_TIMEOUT_S = 1
_READ_BYTES = 64 * 1024
_HOST_KEY_TYPES = (
    ("ssh-ed25519",),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    ("ssh-rsa",),
)


class SshProcess:
    """A command on a channel of its own. `where` and `command` go into messages."""

    def __init__(self, channel: Any, where: str) -> None:
        self._channel = channel
        self._where = where
        self._killed = False
        self._tail = Tail(partial(channel.recv_stderr, _READ_BYTES))
        self._feeder = Feeder(self._write, self._shut)

    def send(self, data: bytes) -> None:
        if self._link_is_gone():
            raise self._lost()
        self._feeder.put(data)

    def close_stdin(self) -> None:
        self._feeder.close()

    def lines(self) -> Iterator[bytes]:
        yield from split_lines(partial(self._channel.recv, _READ_BYTES))
        # A server ends a command with end-of-file, an exit status or both; a broken link says nothing.
        ended = self._channel.eof_received or self._channel.exit_status >= 0
        if not ended and not self._killed:
            raise self._lost()

    def wait(self) -> int:
        """Raises HostUnreachable when the link broke before the exit status came."""
        status = int(self._channel.recv_exit_status())
        self._feeder.close()
        self._tail.finish(timeout_s=1)
        self._channel.close()
        if status >= 0:
            return status
        if self._killed:
            return 128 + 9
        raise self._lost()

    def stderr_tail(self) -> str:
        return self._tail.text()

    def kill(self) -> None:
        """Ask the server to kill it, then close its streams.

        Signals are optional in SSH, and OpenSSH sends none in root's sessions: a command there lives on until
        it reads its stdin or writes.
        """
        self._killed = True
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_REQUEST)
        message.add_int(self._channel.remote_chanid)
        message.add_string("signal")
        message.add_boolean(False)
        message.add_string("KILL")
        with suppress(paramiko.SSHException, EOFError, OSError):
            self._channel.get_transport()._send_user_message(message)
            self._channel.status_event.wait(_KILL_TIMEOUT_S)
            self._channel.close()

    def _write(self, data: bytes) -> None:
        try:
            self._channel.sendall(data)
        except (paramiko.SSHException, EOFError, OSError) as exc:
            # A command may end without reading all of its stdin; its exit status tells if that was right.
            if isinstance(exc, EOFError) or self._link_is_gone():
                raise self._lost() from exc

    def _shut(self) -> None:
        with suppress(paramiko.SSHException, EOFError, OSError):
            self._channel.shutdown_write()

    def _link_is_gone(self) -> bool:
        return not self._channel.get_transport().is_active()

    def _lost(self) -> HostUnreachable:
        return _lost(self._where, "a command ran")


class SshTransport:
    """One connection; the SFTP session opens with the first file and stays open.

    Raises HostUnreachable, AuthFailed, HostKeyUnknown, HostKeyChanged, or ConfigError for a wrong target.
    """

    def __init__(self, target: SshTarget, prompt_secret: PromptSecret | None = None) -> None:
        options = resolve(target)
        known = [key.key_type for keys in known_keys(options) for key in keys if not key.marker]
        with connected(target, options, known) as self._link:
            verify_host_key(self._link, target.name)
            log_in(self._link, prompt_secret)
        self._where = self._link.where
        self._sftp: Any = None

    def start(self, argv: Sequence[str]) -> SshProcess:
        with self._translated("starting a command"):
            channel = self._link.transport.open_session(timeout=_OPEN_TIMEOUT_S)
            channel.exec_command(shlex.join(argv))
        return SshProcess(channel, self._where)

    def put(
        self,
        source: Path,
        destination: str,
        offset: int = 0,
        end: End | None = None,
        pace: Pace | None = None,
    ) -> Iterator[int]:
        """Besides the Protocol's: CorruptBundle when `source` can't be read, RemoteCommandFailed when the
        server refuses to write."""
        path = _remote(destination)
        with _reading(source) as data, self._translated(f"writing {path}"):
            total = source.stat().st_size
            if end is None:
                self._refuse_if_full(path, total)
            data.seek(offset)
            with self._open(path, keep=offset > 0 or end is not None) as file:
                upload = Upload(self._files(), file, offset)
                try:
                    while count := _read(upload, data, end):
                        if pace is not None:
                            pace(count)
                        yield upload.write(count)
                    yield upload.finish()
                except OSError as exc:
                    if not self._is_lost():
                        self._explain_full(path, total - upload.acknowledged, exc)
                    raise

    def _open(self, path: str, *, keep: bool) -> Any:
        """A file to write to; with `keep` what is in it stays, and it is made where there is none."""
        if not keep:
            return self._files().open(path, "wb")
        try:
            return self._files().open(path, "r+b")
        except FileNotFoundError:
            self._files().open(path, "ab").close()
            return self._files().open(path, "r+b")

    def make_dirs(self, path: str) -> None:
        folder = _remote(path)
        with self._translated(f"creating {folder}"):
            missing = []
            while folder not in ("", "/") and self._mode(folder) is None:
                missing.append(folder)
                folder = posixpath.dirname(folder)
            for part in reversed(missing):
                self._files().mkdir(part, 0o700)
            mode = self._mode(_remote(path))
            if mode is None or not stat.S_ISDIR(mode):
                raise OSError("not a folder")

    def size(self, path: str) -> int | None:
        with self._translated(f"reading {path}"):
            return self._size(_remote(path))

    def rename(self, source: str, destination: str) -> None:
        with self._translated(f"renaming {source} to {destination}"):
            self._files().posix_rename(_remote(source), _remote(destination))

    def close(self) -> None:
        self._link.close()

    def _files(self) -> Any:
        if self._sftp is None:
            try:
                self._sftp = paramiko.SFTPClient.from_transport(self._link.transport)
            except paramiko.SSHException as exc:
                if self._is_lost():
                    raise
                raise RemoteCommandFailed(
                    f"{self._where}: the server offers no SFTP session: {exc}",
                    "install openssh-sftp-server there (Subsystem sftp in sshd_config); "
                    "MaxSessions must leave room for it",
                ) from exc
        return self._sftp

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
        """A full disk is only `Failure` in SFTP; ask for the free space to tell it from other failures."""
        folder = posixpath.dirname(path) or "."
        free = self._free_bytes(folder)
        if free is not None and free < needs:
            raise device_full(self._where, needs, free, folder) from exc

    def _free_bytes(self, folder: str) -> int | None:
        """Free space for this user, None where the server has no statvfs@openssh.com."""
        try:
            _, reply = self._files()._request(CMD_EXTENDED, "statvfs@openssh.com", folder)
        except OSError:
            return None
        _block_size, fragment_size, _blocks, _free, available = (reply.get_int64() for _ in range(5))
        return int(fragment_size * available)

    @contextmanager
    def _translated(self, action: str) -> Iterator[None]:
        try:
            yield
        except paramiko.ChannelException as exc:
            raise RemoteCommandFailed(
                f"{self._where}: the server refuses another session: {exc.text}",
                "close other sessions to it, or raise MaxSessions in its sshd_config",
            ) from exc
        except (paramiko.SSHException, EOFError, OSError) as exc:
            # EOFError comes from the socket itself, before the transport's thread has noticed.
            if isinstance(exc, EOFError) or self._is_lost():
                raise _lost(self._where, action) from exc
            raise RemoteCommandFailed(f"{self._where}: {action} failed: {_reason(exc)}") from exc

    def _is_lost(self) -> bool:
        # A breaking link closes the channels before the transport says that it isn't active.
        files_closed = self._sftp is not None and self._sftp.get_channel().closed
        return files_closed or not self._link.transport.is_active()


def trust_host_key(target: SshTarget, fingerprint_: str) -> Path:
    """Append the server's host key to the user's known_hosts, when it has this `SHA256:…` fingerprint.

    Connects for the key alone, nobody logs in. Returns the file. Raises HostKeyChanged when no host key of
    the server has the fingerprint, or when another key of that type is in the file; HostUnreachable.
    """
    options = resolve(target)
    wanted = "SHA256:" + fingerprint_.strip().removeprefix("SHA256:").rstrip("=")
    name = host_names(options.hostname, options.port, options.host_key_alias)[0]
    offered: list[str] = []
    for key_types in _HOST_KEY_TYPES:
        with connected(target, options, key_types) as link:
            key = link.transport.get_remote_server_key()
            link.close()
        found = f"{key.get_name()} {fingerprint(key.asbytes())}"
        if fingerprint(key.asbytes()) != wanted:
            offered += [] if found in offered else [found]
            continue
        for entry in known_keys(options)[0]:
            if entry.key_type == key.get_name() and entry.blob != key.asbytes():
                raise host_key_changed(link, target.name, entry, key.asbytes())
            if entry.blob == key.asbytes():
                return entry.file
        append_known_host(options.known_hosts[0], name, key.get_name(), key.asbytes())
        return options.known_hosts[0]
    raise HostKeyChanged(
        f"{link.where}: no host key with fingerprint {wanted}; the server offers {', '.join(offered)}",
        "compare with what 'ssh-keygen -lf' prints on the device itself",
    )


def _lost(where: str, action: str) -> HostUnreachable:
    return HostUnreachable(
        f"{where}: the connection was lost while {action}",
        "is the device still on and in the network? The same command continues where this one stopped",
    )


def _reason(exc: BaseException) -> str:
    reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return str(reason)[:1].lower() + str(reason)[1:]


def _remote(path: str) -> str:
    """SFTP starts in the login folder and knows no `~`."""
    return path.removeprefix("~/").rstrip("/") or path


@contextmanager
def _reading(source: Path) -> Iterator[FileIO]:
    try:
        data = source.open("rb", buffering=0)
    except OSError as exc:
        raise CorruptBundle(f"{source}: cannot be read: {exc.strerror}") from exc
    with data:
        yield data


def _read(upload: Upload, data: FileIO, end: End | None) -> int:
    """A local read error must not look like one of the link."""
    try:
        left = CHUNK_BYTES if end is None else end(data.tell()) - data.tell()
        return upload.read(data, max(0, left))
    except OSError as exc:
        raise CorruptBundle(f"{data.name!s}: cannot be read: {exc.strerror}") from exc
