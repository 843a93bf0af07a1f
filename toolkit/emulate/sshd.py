"""A private OpenSSH server: on the loopback address, with its own keys, for one user."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from toolkit.errors import HostUnreachable
from toolkit.localhost import without_secrets

HOST = "127.0.0.1"
_START_TIMEOUT_S = 10.0


def find_sshd() -> Path | None:
    """The OpenSSH server program, which is seldom in the PATH of normal users."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which("sshd", path=places)
    return Path(found) if found else None


def _login_name() -> str:
    import pwd  # absent on Windows, where this module must still be importable

    # getpass.getuser() asks the environment, which after sudo may name somebody else.
    return pwd.getpwuid(os.geteuid()).pw_name


def free_port() -> int:
    """A TCP port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class PrivateSshd:
    """An sshd that serves the current user; commands start in that user's real home folder.

    `root` is only a folder for the caller to install into (as an absolute path). The object has the
    attributes of a target: name, host, port, user, identity_file, known_hosts.
    """

    name = "loopback"
    host = HOST
    os = "posix"

    def __init__(self, root: Path, max_sessions: int = 10, extra_config: str = "") -> None:
        self.root = root.absolute()
        self.port = free_port()
        self.user = _login_name()
        self.kind = "OpenSSH"
        self._max_sessions = max_sessions
        self._extra_config = extra_config
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Raises HostUnreachable with what sshd said when it doesn't start."""
        sshd = find_sshd()
        if sshd is None:
            raise HostUnreachable("sshd isn't installed on this machine", "install openssh-server")
        self.root.mkdir(parents=True, exist_ok=True)
        self._private = Path(tempfile.mkdtemp(prefix="edgephi-sshd-"))
        config = self._write_files()
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                [sshd, "-D", "-e", "-f", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=without_secrets(),
            )
        try:
            self.kind = self._wait_for_banner()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server with its sessions and remove its keys."""
        self.kill()
        shutil.rmtree(self._private, ignore_errors=True)

    def kill(self) -> None:
        """Kill the listener and every session at once, as if the device had lost its power."""
        if self._child is None:
            return
        # Each session is in a process group of its own.
        for pid in [self._child.pid, *_descendants(self._child.pid)]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._child.wait()
        self._child = None

    @property
    def _log(self) -> Path:
        return self._private / "log"

    def _write_files(self) -> Path:
        host_key = self._private / "host_key"
        self.identity_file = self._private / "client_key"
        self.known_hosts = self._private / "known_hosts"
        authorized = self._private / "authorized_keys"
        config = self._private / "sshd_config"
        public = write_key_pair(host_key)
        texts = {
            self.known_hosts: f"[{self.host}]:{self.port} {public}\n",
            authorized: f"{write_key_pair(self.identity_file)}\n",
            config: self._config(host_key, authorized),
        }
        for path, text in texts.items():
            path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8")
        return config

    def _config(self, host_key: Path, authorized: Path) -> str:
        # bash reads ~/.bashrc for a command over SSH, unless SHLVL says that it is in another shell. People's ~/.bashrc
        # takes time, and takes locks that `kill` leaves behind (pyenv's: every shell waits for a minute then).
        # Of a repeated keyword sshd takes the first value, so the extra lines stand first; only Subsystem may
        # not be repeated.
        sftp = "" if "Subsystem" in self._extra_config else "Subsystem sftp internal-sftp"
        return f"""{self._extra_config}
ListenAddress {self.host}
Port {self.port}
HostKey {host_key}
AuthorizedKeysFile {authorized}
SetEnv SHLVL=1
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxSessions {self._max_sessions}
{sftp}
"""

    def _wait_for_banner(self) -> str:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._child and self._child.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1) as sock:
                banner = sock.recv(256).decode(errors="replace")
                found = re.match(r"SSH-[\d.]+-OpenSSH_(\d+\.\d+)", banner)
                return f"OpenSSH {found[1]}" if found else banner.strip()
            time.sleep(0.02)
        said = self._log.read_text(errors="replace").strip()
        raise HostUnreachable(f"the private sshd didn't start: {said or 'no answer'}")


def _descendants(pid: int) -> list[int]:
    """All descendants of a process, from /proc; none where there is no /proc."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def write_key_pair(path: Path) -> str:
    """Write a fresh ed25519 private key (mode 0600); returns the public one as `ssh-ed25519 AAAA…`."""
    key = Ed25519PrivateKey.generate()
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()
