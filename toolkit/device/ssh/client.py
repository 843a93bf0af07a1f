"""SSH to a target with paramiko: commands over channels, files over one SFTP session."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import paramiko

from toolkit.device.account import commands_refused
from toolkit.device.shells import ServerShell
from toolkit.device.ssh.auth import log_in
from toolkit.device.ssh.config import SshTarget, refuse_foreign, resolve
from toolkit.device.ssh.files import SftpFiles, link_lost, no_sftp
from toolkit.device.ssh.hops import connected_by_hops
from toolkit.device.ssh.internals import CHANNEL_REQUEST, send_message
from toolkit.device.ssh.link import Link, known_key_types, verify_host_key
from toolkit.device.ssh.packets import send_all
from toolkit.device.streams import Feeder, Tail, split_lines
from toolkit.device.transport import PromptSecret
from toolkit.errors import HostUnreachable

_OPEN_TIMEOUT_S = 20
_KILL_TIMEOUT_S = 1
_READ_BYTES = 64 * 1024
# Enough connections for a server that allows one session on each: files, the push's hold, a command.
_MOST_LINKS = 4
# The greetings of OpenSSH for Windows and of Bitvise's server.
_WINDOWS_GREETING = re.compile("Windows|WinSSHD")


class SshProcess:
    """A command on a channel of its own. `where` begins every message about it."""

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
        # A server ends a command with end-of-file, an exit status or both; a broken link brings neither.
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
        """Ask the server to kill the command, then close its streams.

        Signals are optional in SSH, and OpenSSH sends none in root's sessions: a command there lives on until
        it reads its stdin or writes.
        """
        self._killed = True
        message = paramiko.Message()
        message.add_byte(CHANNEL_REQUEST)
        message.add_int(self._channel.remote_chanid)
        message.add_string("signal")
        message.add_boolean(False)
        message.add_string("KILL")
        with suppress(paramiko.SSHException, EOFError, OSError):
            send_message(self._channel.get_transport(), message)
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
        return link_lost(self._where, "a command ran")


class SshTransport(SftpFiles):
    """One connection; the SFTP session opens with the first file and stays open.

    Where the server allows few sessions on a connection, more connections are opened. Raises HostUnreachable,
    AuthFailed, HostKeyUnknown, HostKeyChanged, or ConfigError for a wrong target.
    """

    def __init__(self, target: SshTarget, prompt_secret: PromptSecret | None = None) -> None:
        self._target = target
        self._options = resolve(target)
        refuse_foreign(target, self._options.only_openssh)
        self._prompt_secret = prompt_secret if self._options.may_ask else None
        self._link = self._dial()
        self._others: list[Link] = []
        super().__init__(self._link.where)
        self._sftp: Any = None
        greeting = self._link.transport.remote_version
        self.windows = target.os == "windows" if target.os else bool(_WINDOWS_GREETING.search(greeting))
        self._shell = ServerShell(self._exec, windows=self.windows)

    def start(self, argv: Sequence[str]) -> SshProcess:
        """Raises, besides the Protocol's errors, ConfigError for words that can't be given to the shell there."""
        return self._exec(self._shell.line(argv))

    @property
    def shell_name(self) -> str:
        return self._shell.name

    def _exec(self, line: str) -> SshProcess:
        with self._translated("starting a command"):
            channel = self._open_session()
            for name, value in self._options.environment:
                channel.set_environment_variable(name, value)
            channel.exec_command(line)
        return SshProcess(channel, self._where)

    def _dial(self) -> Link:
        with connected_by_hops(self._target, self._options, known_key_types(self._options)) as link:
            refuse_foreign(self._target, link.transport.foreign)
            verify_host_key(link, self._target.name)
            log_in(link, self._prompt_secret)
        link.watch()
        return link

    def free_sessions(self, wanted: int) -> int:
        """Count the sessions, of `wanted` more, that the server allows on the first connection; close them again."""
        opened: list[Any] = []
        with self._translated("opening sessions"), suppress(paramiko.ChannelException):
            while len(opened) < wanted:
                opened.append(self._link.transport.open_session(timeout=_OPEN_TIMEOUT_S))
        for channel in opened:
            channel.close()
        return len(opened)

    def _open_session(self) -> Any:
        """Open a session, on a new connection if the server allows no more on the open ones (MaxSessions)."""
        for link in (self._link, *self._others):
            try:
                return link.transport.open_session(timeout=_OPEN_TIMEOUT_S)
            except paramiko.ChannelException:
                if len(self._others) == _MOST_LINKS - 1:
                    raise
        self._others.append(self._dial())
        return self._others[-1].transport.open_session(timeout=_OPEN_TIMEOUT_S)

    def close(self) -> None:
        for link in (self._link, *self._others):
            link.close()

    def _files(self) -> Any:
        if self._sftp is None:
            try:
                channel = self._open_session()
                channel.invoke_subsystem("sftp")
                self._sftp = paramiko.SFTPClient(channel)
            except paramiko.ChannelException:
                raise
            except (paramiko.SSHException, paramiko.SFTPError) as exc:
                if self._is_lost():
                    raise
                raise commands_refused(self.start, self._where) or no_sftp(self._where, exc) from exc
        return self._sftp

    def _send_all(self, data: memoryview) -> None:
        send_all(self._sftp.get_channel(), data)

    def _is_lost(self) -> bool:
        # A breaking link closes the channels before the transport says that it isn't active.
        files_closed = self._sftp is not None and self._sftp.get_channel().closed
        return files_closed or not self._link.transport.is_active()
