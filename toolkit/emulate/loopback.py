"""A server on this machine that stands in for a device: OpenSSH where it works, else an embedded one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from toolkit.device.ssh.client import SshTransport
from toolkit.emulate.embedded import EmbeddedServer
from toolkit.emulate.sshd import PrivateSshd
from toolkit.errors import DeviceError


@contextmanager
def start_loopback(root: Path, *, embedded: bool = False) -> Iterator[PrivateSshd | EmbeddedServer]:
    """A running server for the current user, which ends with the block; `embedded` asks for the embedded one always.

    The server's `kind` names the one that runs. Installs are to go into `root`, by its absolute path.
    """
    server = EmbeddedServer(root) if embedded or not _openssh_works(root) else PrivateSshd(root)
    with server:
        yield server


def _openssh_works(root: Path) -> bool:
    """Tell if sshd is here and lets this user in: it refuses locked accounts, and some accounts have no shell."""
    try:
        with PrivateSshd(root) as server, closing(SshTransport(server)) as transport:
            return transport.start(["true"]).wait() == 0
    except DeviceError:
        return False
