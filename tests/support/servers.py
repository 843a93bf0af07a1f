"""Targets, cut-off links and small disks for the tests that need a server."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from toolkit.device.ssh.client import SshTransport
from toolkit.emulate.sshd import find_sshd

# Nothing is skipped in CI, which runs as root and has everything installed.
IN_CI = "CI" in os.environ
needs_root = pytest.mark.skipif(not IN_CI and os.geteuid() != 0, reason="mounting needs root")
needs_sshd = pytest.mark.skipif(not IN_CI and find_sshd() is None, reason="needs openssh-server")


@dataclass(frozen=True)
class Address:
    """The part of a target that transports read."""

    name: str
    host: str
    user: str | None = None
    port: int | None = None
    identity_file: Path | None = None
    known_hosts: Path | None = None
    os: str | None = None


def address_of(server: Any, **changes: Any) -> Address:
    """The address of a loopback server, with some fields changed."""
    found = Address("pi5", server.host, server.user, server.port, server.identity_file, server.known_hosts)
    return replace(found, **changes)


def connects(address: Address) -> SshTransport:
    """Assert that a command runs there; returns the transport, closed."""
    with closing(SshTransport(address)) as transport:
        assert transport.start(["true"]).wait() == 0
        return transport


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small file system of its own on `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


class Relay:
    """A relay from a port of its own to another one, until it is cut."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = [self._listener]
        self._frozen = False
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Forward nothing any more and close nothing, like a router that has lost its connection table."""
        self._frozen = True

    def cut(self) -> None:
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection(self._to)
                self._sockets += [ours, theirs]
                for source, sink in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                while self._frozen:
                    time.sleep(0.1)
                sink.sendall(data)
