"""SSH to a target with the system's OpenSSH client, which encrypts in a process of its own.

One `ssh` carries an SFTP session and, by its control socket, every command. It decides about host keys and logs in as
the user's configuration says. It never asks the user: it fails where it would have to ask.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from select import select
from typing import Any

import paramiko

from toolkit.device.account import commands_refused
from toolkit.device.local import LocalProcess
from toolkit.device.shells import ServerShell
from toolkit.device.ssh import link as ssh_link
from toolkit.device.ssh.banners import Banners, with_words
from toolkit.device.ssh.config import CONFIG_VARIABLE, SshOptions, SshTarget, resolve
from toolkit.device.ssh.files import SftpFiles, link_lost, no_sftp, sessions_refused
from toolkit.device.ssh.hops import connected_by_hops
from toolkit.device.ssh.keywords import SWITCHED_OFF
from toolkit.device.ssh.link import known_key_types, verify_host_key
from toolkit.device.ssh.words import causes, host_key_refusal, is_revoked
from toolkit.device.streams import TAIL_BYTES, Tail
from toolkit.errors import AuthFailed, ConfigError, HostUnreachable

# A security key waits to be touched; nothing else takes so long.
_LOGIN_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 2.0
_POLL_S = 0.2
# ssh's exit code for its own errors; a command there may end with it too.
_SSH_FAILED = 255
_UNANSWERED = 2
_READ_BYTES = 64 * 1024
_FIXED = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    "ServerAliveCountMax": str(_UNANSWERED),
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "EscapeChar": "none",
    "ControlPersist": "no",
    "Compression": "no",
    "LogLevel": "INFO",  # below it ssh keeps the server's banner to itself
}


class _Stream:
    """Our end of ssh's stdin and stdout. paramiko's SFTPClient takes it for a channel."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # Called again and again while nothing comes.
        self.waits: Callable[[], None] | None = None
        self.ended = False

    def send(self, data: bytes) -> int:
        self.send_all(memoryview(data))
        return len(data)

    def send_all(self, data: memoryview) -> None:
        try:
            self._sock.sendall(data)
        except OSError:
            self.ended = True
            raise

    def recv(self, count: int) -> bytes:
        while self.waits is not None and not select([self._sock], [], [], _POLL_S)[0]:
            self.waits()
        data = self._sock.recv(count)
        self.ended = not data
        return data

    def recv_ready(self) -> bool:
        return bool(select([self._sock], [], [], 0)[0])

    def close(self) -> None:
        self.ended = True
        self._sock.close()

    def get_name(self) -> str:
        return "ssh"


class OpenSshProcess(LocalProcess):
    """A command over the connection's control socket. ssh doesn't tell the signal that killed it: it ends with 255."""

    def __init__(self, argv: Sequence[str], transport: OpenSshTransport) -> None:
        super().__init__(argv, Path.home())
        self._transport = transport
        self._killed = False

    def send(self, data: bytes) -> None:
        if self._transport.is_lost():
            raise self._transport.lost("a command ran")
        super().send(data)

    def lines(self) -> Iterator[bytes]:
        yield from super().lines()
        # A command may close its stdout and go on: then ssh doesn't end in this time.
        with suppress(subprocess.TimeoutExpired):
            self._check(self._child.wait(_END_TIMEOUT_S))

    def wait(self) -> int:
        """Raises HostUnreachable when the link broke before the exit status came."""
        status = super().wait()
        self._check(status)
        return status

    def kill(self) -> None:
        self._killed = True
        super().kill()

    def _check(self, status: int) -> None:
        if status != _SSH_FAILED or self._killed:
            return
        if self._transport.is_lost(_END_TIMEOUT_S / 2):
            raise self._transport.lost("a command ran")
        if "refused by peer" in (said := self.stderr_tail()):
            raise sessions_refused(self._transport.where, said.strip().splitlines()[-1])


class OpenSshTransport(SftpFiles):
    """One ssh with one connection.

    Raises HostUnreachable, AuthFailed, HostKeyUnknown, HostKeyChanged, RemoteCommandFailed for a server without SFTP,
    or ConfigError for a wrong target and where there is no ssh that can share a connection.
    """

    def __init__(self, target: SshTarget) -> None:
        self._ssh = _find_ssh(target)
        self._target = target
        self._options = resolve(target)
        super().__init__(f"{target.name} ({self._options.hostname}:{self._options.port})")
        # ssh doesn't tell the server's greeting, so the target's file alone decides.
        self.windows = target.os == "windows"
        self._shell = ServerShell(self._exec, windows=self.windows)
        self._folder = Path(tempfile.mkdtemp(prefix="edgephi-ssh-"))
        ours, theirs = socket.socketpair()
        self._stream = _Stream(ours)
        # ssh's own words go to a file: what it prints is the server's banner, and the words of a proxy.
        self._arguments = _arguments(target, self._options)
        argv = [self._ssh, *self._arguments, "-E", str(self._log), "-M", "-S", str(self._control)]
        argv += ["-s", "--", target.host or "", "sftp"]
        with theirs:
            self._child = subprocess.Popen(
                argv,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        assert self._child.stderr
        self._tail = Tail(partial(self._child.stderr.read, _READ_BYTES))
        self._banners = Banners(self._where, shown=self._options.shows_banner)
        try:
            self._sftp = self._begin(target)
        except BaseException:
            self.close()
            raise

    def start(self, argv: Sequence[str]) -> OpenSshProcess:
        return self._exec(self._shell.line(argv))

    @property
    def shell_name(self) -> str:
        return self._shell.name

    def _exec(self, line: str) -> OpenSshProcess:
        if self.is_lost():
            raise self.lost("starting a command")
        # Without a control socket ssh would open a connection of its own: the ProxyCommand makes that fail.
        client = [self._ssh, "-F", "none", "-S", str(self._control), "-T", "-o", "ProxyCommand=false"]
        client += ["-o", "LogLevel=ERROR", "-o", "EscapeChar=none"]
        if self._options.environment:
            client += ["-o", f"SetEnv={' '.join(map(_variable, self._options.environment))}"]
        return OpenSshProcess([*client, "--", "target", line], self)

    def close(self) -> None:
        self._stream.close()
        with suppress(ProcessLookupError):
            self._child.terminate()
        self._child.wait()
        self._tail.finish(timeout_s=1)
        shutil.rmtree(self._folder, ignore_errors=True)

    def is_lost(self, timeout_s: float = 0) -> bool:
        """Tell if the connection is gone, or goes within that time."""
        return self._stream.ended or self._has_ended(timeout_s)

    def _has_ended(self, timeout_s: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout_s)
        return self._child.returncode is not None

    def lost(self, action: str) -> HostUnreachable:
        return link_lost(self._where, action)

    @property
    def where(self) -> str:
        return self._where

    @property
    def _control(self) -> Path:
        return self._folder / "s"

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _begin(self, target: SshTarget) -> Any:
        """Wait for ssh's login and open the SFTP session."""
        since, heard = time.monotonic(), 0

        def wait() -> None:
            nonlocal heard
            said = self._tail.text()[: TAIL_BYTES - 1]
            said = said[: said.rfind("\n") + 1]
            self._banners.hear(said[heard:])
            self._banners.show()
            heard = len(said)
            limit_s = self._options.connect_timeout_s + self._banners.limit_s(_LOGIN_TIMEOUT_S)
            if time.monotonic() - since > limit_s:
                self._child.kill()

        self._stream.waits = wait
        try:
            return paramiko.SFTPClient(self._stream)
        except (paramiko.SSHException, paramiko.SFTPError, EOFError, OSError) as exc:
            if not self._has_ended(_END_TIMEOUT_S):
                # A login shell printed something by itself where SFTP's answer should have come.
                raise no_sftp(self._where, exc) from exc
            self._tail.finish(timeout_s=1)
            raise self._explained(target) from exc
        finally:
            self._stream.waits = None
            wait()

    def _explained(self, target: SshTarget) -> Exception:
        """The error that says why ssh ended. If a connection of our own fails too, this raises that one's error."""
        said, status = _text(self._log), self._child.returncode
        told = "; ".join(causes(said) or causes(self._tail.text())) or f"ssh ended with exit code {status}"
        told = with_words(told, self._banners.said)
        refused = host_key_refusal(self._where, said)
        if refused is not None and is_revoked(said):
            return refused  # our own connection doesn't know the list of revoked keys
        if "Permission denied" in said or "authentication failures" in said:
            return AuthFailed(
                f"{self._where}: ssh can't log in as '{self._options.user}' without asking: {told}",
                "give the key to the agent first (ssh-add), or leave --transport openssh out: then passphrases and "
                "passwords are asked for",
            )
        if "subsystem request failed" in said or 0 <= status < _SSH_FAILED:
            return commands_refused(self._apart, self._where) or no_sftp(self._where, told)
        with connected_by_hops(target, self._options, known_key_types(self._options)) as link:
            verify_host_key(link, target.name)
            link.close()
        return refused or HostUnreachable(
            f"{self._where}: {told}", "the message is ssh's own: try ssh to the same host"
        )

    def _apart(self, argv: Sequence[str]) -> LocalProcess:
        """Start a command over a connection of its own, for there is no other one."""
        line = self._shell.line(argv)
        changed = {"SessionType=subsystem": "SessionType=default", "LogLevel=INFO": "LogLevel=ERROR"}
        own = [changed.get(word, word) for word in self._arguments]
        command = [self._ssh, *own, "-T", "--", self._target.host or "", line]
        return LocalProcess(command, Path.home())

    def _files(self) -> Any:
        return self._sftp

    def _send_all(self, data: memoryview) -> None:
        self._stream.send_all(data)

    def _is_lost(self) -> bool:
        return self.is_lost()


def ssh_is_here() -> bool:
    """Tell if this system has an OpenSSH client that can share a connection; Windows' can't."""
    return sys.platform != "win32" and shutil.which("ssh") is not None


def _find_ssh(target: SshTarget) -> str:
    found = shutil.which("ssh")
    if found is None or not ssh_is_here():
        reason = "can't share a connection" if found else "isn't installed"
        raise ConfigError(
            f"target '{target.name}': transport openssh: the OpenSSH client {reason} on this machine",
            "leave --transport out, or install openssh-client" if found is None else "leave --transport out",
        )
    return found


def _arguments(target: SshTarget, options: SshOptions) -> list[str]:
    """The arguments for ssh from a target's own fields and from us; the rest is left to ssh's configuration."""
    settings = _FIXED | {name: value for name, value in SWITCHED_OFF.items() if name.lower() in options.printed}
    settings["ConnectTimeout"] = str(max(1, round(options.connect_timeout_s)))
    settings["ServerAliveInterval"] = str(max(1, round(ssh_link.KEEPALIVE_S)))
    # AES-GCM takes half the time of the first choice; sorting is stable.
    settings["Ciphers"] = ",".join(sorted(options.ciphers, key=lambda name: "-gcm@" not in name))
    if target.known_hosts is not None:
        settings["UserKnownHostsFile"] = _quoted(target.known_hosts)
        settings["GlobalKnownHostsFile"] = "/dev/null"
    if target.identity_file is not None:
        settings["IdentityFile"] = _quoted(target.identity_file)
        settings["IdentitiesOnly"] = "yes"
    arguments = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    config_file = os.environ.get(CONFIG_VARIABLE)
    arguments += ["-F", config_file] if config_file else []
    arguments += ["-l", target.user] if target.user else []
    return arguments + (["-p", str(target.port)] if target.port else [])


def _variable(pair: tuple[str, str]) -> str:
    """A variable and its value for SetEnv, in which backslashes and quotes are escaped."""
    return '"{}={}"'.format(*(part.replace("\\", "\\\\").replace('"', '\\"') for part in pair))


def _text(path: Path) -> str:
    """The end of a log; nothing where ssh ended before it made one."""
    with suppress(OSError):
        return path.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    return ""


def _quoted(path: Path | str) -> str:
    """A path quoted for ssh's configuration, in which blanks divide values and % begins a token."""
    return '"{}"'.format(str(Path(path).expanduser()).replace("%", "%%"))
