"""ProxyCommand and ProxyJump: a command that carries a connection."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import IO

from toolkit.device.streams import Tail

# On Windows a socket isn't a file, so a command can't have one for its streams.
_TAKES_SOCKET = os.name != "nt"
_READ_BYTES = 64 * 1024


class Proxy:
    """A command that carries a connection over one end of a socket pair; the other end is `sock`.

    paramiko.ProxyCommand isn't used, because it reads for ever after its command has ended.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.sock, theirs = socket.socketpair()
        if _TAKES_SOCKET:
            with theirs:
                self._child = _start(command, theirs.fileno())
        else:
            self._child = _start(command, subprocess.PIPE)
            assert self._child.stdin and self._child.stdout
            for pump in (partial(_out_of, self._child.stdout, theirs), partial(_into, theirs, self._child.stdin)):
                Thread(target=pump, name="edgephi-proxy", daemon=True).start()
        assert self._child.stderr
        self._said = Tail(partial(self._child.stderr.read, _READ_BYTES))

    @property
    def said(self) -> str:
        """The last 8 KiB of its stderr so far."""
        return self._said.text()

    def end(self, patience_s: float = 0.0) -> str:
        """End the command, unless it does so by itself; return the last 8 KiB of its stderr."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(patience_s)
        self._child.kill()
        self._child.wait()
        self.sock.close()
        self._said.finish(timeout_s=1)
        return self._said.text()


def _start(command: str, stream: int) -> subprocess.Popen[bytes]:
    # A shell reads the command, as it does for ssh; on Windows the shell is cmd.exe. The command ignores Ctrl-C, which
    # is for us alone, and keeps the terminal for the questions that ssh asks.
    line = command if os.name == "nt" else f"trap '' INT; exec {command}"
    return subprocess.Popen(line, shell=True, bufsize=0, stdin=stream, stdout=stream, stderr=subprocess.PIPE)


def _out_of(stream: IO[bytes], sock: socket.socket) -> None:
    with suppress(OSError, ValueError):
        while data := stream.read(_READ_BYTES):
            sock.sendall(data)
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _into(sock: socket.socket, stream: IO[bytes]) -> None:
    with suppress(OSError, ValueError), stream:
        while data := sock.recv(_READ_BYTES):
            view = memoryview(data)
            while view:
                view = view[stream.write(view) :]
