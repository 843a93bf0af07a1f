"""An SSH server inside this process, over one folder, for demos and tests on machines without sshd."""

from __future__ import annotations

import getpass
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Literal, Self

import paramiko

from toolkit.emulate.embedded_exec import run_command
from toolkit.emulate.embedded_files import FilesUnder
from toolkit.emulate.sshd import write_key_pair


class Session(paramiko.ServerInterface):  # type: ignore[misc]
    """Lets one key in; a channel carries one command or one SFTP session."""

    def __init__(self, root: Path, client_key: bytes) -> None:
        self.root = root
        self._client_key = client_key

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002
        return "publickey"

    def check_auth_publickey(self, username: str, key: Any) -> int:  # noqa: ARG002
        accepted = key.asbytes() == self._client_key
        return int(paramiko.AUTH_SUCCESSFUL if accepted else paramiko.AUTH_FAILED)

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        if kind == "session":
            return int(paramiko.OPEN_SUCCEEDED)
        return int(paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED)

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        Thread(target=self.run, args=(channel, command), daemon=True).start()
        return True

    def run(self, channel: Any, command: bytes) -> None:
        run_command(channel, ["/bin/sh", "-c", command], self.root, {"HOME": str(self.root)})


class EmbeddedServer:
    """Serves `root` on the loopback address for one generated client key.

    Commands run with `/bin/sh -c`, home and working folder `root`: that is a starting point, no sandbox. SFTP
    reaches nothing outside `root`. The object has the attributes of a target: name, host, port, user,
    identity_file, known_hosts.
    """

    name = "loopback"
    host = "127.0.0.1"
    os: Literal["posix", "windows"] = "posix"
    kind = "embedded (paramiko)"
    session: type[Session] = Session
    files: type[Any] = FilesUnder
    greeting: str | None = None

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()
        self.user = getpass.getuser()
        self._transports: list[Any] = []

    def __enter__(self) -> Self:
        self._listener = socket.create_server((self.host, 0))
        self.port = int(self._listener.getsockname()[1])
        self._private = Path(tempfile.mkdtemp(prefix="edgephi-embedded-"))
        self.identity_file = self._private / "client_key"
        self.known_hosts = self._private / "known_hosts"
        host_file = self._private / "host_key"
        public = write_key_pair(host_file)
        self.known_hosts.touch(mode=0o600)
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {public}\n", encoding="utf-8")
        write_key_pair(self.identity_file)
        self._host_key = paramiko.Ed25519Key.from_private_key_file(str(host_file))
        self._client_key = paramiko.Ed25519Key.from_private_key_file(str(self.identity_file)).asbytes()
        Thread(target=self._accept, name="edgephi-embedded", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server with its sessions, kill their commands, remove the keys."""
        self.kill()
        shutil.rmtree(self._private, ignore_errors=True)

    def kill(self) -> None:
        """Close the listener and every connection at once."""
        # Closing alone doesn't wake a thread that waits in accept().
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for transport in self._transports:
            transport.close()
        self._transports.clear()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        transport = paramiko.Transport(connection)
        transport.local_version = self.greeting or transport.local_version
        transport.add_server_key(self._host_key)
        transport.set_subsystem_handler("sftp", paramiko.SFTPServer, self.files)
        self._transports.append(transport)
        try:
            transport.start_server(server=self.session(self.root, self._client_key))
        except (paramiko.SSHException, EOFError, OSError):
            # A client that only wanted the host key hangs up here.
            transport.close()
