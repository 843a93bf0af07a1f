"""Real registries for tests: Debian's docker-registry with passwords, tokens or TLS; and servers that misbehave."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import manifest
from toolkit.bundle import Bundle, describe_file
from toolkit.bundle.store import write_bundle

_PROGRAM = shutil.which("docker-registry")
needs_registry = pytest.mark.skipif("CI" not in os.environ and _PROGRAM is None, reason="needs docker-registry")
_START_TIMEOUT_S = 60
USER, PASSWORD = "anna", "pass:word"
MIB = 2**20


@dataclass
class LocalRegistry:
    """A registry that runs on a loopback port, with its log and its storage below `folder`."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def reference(self, rest: str = "models/nano:v1") -> str:
        return f"oci://{self.host}/{rest}"

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def requests(self, method: str, path: str = "") -> list[str]:
        """The requests so far of that method, on paths that contain `path`."""
        lines = re.findall(rf'"{method} (\S+) HTTP/1\.[01]" \d+', self.log())
        return [line for line in lines if path in line]

    def blob(self, sha256: str) -> Path:
        return self.folder / f"storage/docker/registry/v2/blobs/sha256/{sha256[:2]}/{sha256}/data"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def registry(
    folder: Path, *, auth: dict[str, Any] | None = None, tls: TlsFiles | None = None, upstream: str | None = None
) -> Iterator[LocalRegistry]:
    """Run a registry until the block ends. With `upstream` it is a mirror that fetches content from there."""
    assert _PROGRAM is not None, "docker-registry isn't installed"
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"accesslog": {"disabled": False}, "level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}, "delete": {"enabled": True}},
        "http": {"addr": "127.0.0.1:0", "secret": "s3cret"},
    }
    if auth is not None:
        config["auth"] = auth
    if tls is not None:
        config["http"]["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
    if upstream is not None:
        config["proxy"] = {"remoteurl": upstream}
    # The registry reads YAML, which JSON is.
    (folder / "config.yml").write_text(json.dumps(config))
    with (folder / "log").open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen([_PROGRAM, "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        yield LocalRegistry(folder, _port_of(process, folder / "log", begin), process)
    finally:
        process.kill()
        process.wait()


def _port_of(process: subprocess.Popen[bytes], log: Path, begin: int) -> int:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        # The log's earlier part is of an earlier registry in the same folder.
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)", log.read_bytes()[begin:].decode())
        if found:
            return int(found[1])
        time.sleep(0.05)
    raise AssertionError(f"docker-registry didn't start: {log.read_text()[-500:]}")


def htpasswd(folder: Path) -> dict[str, Any]:
    """Settings for Basic authentication: USER with PASSWORD."""
    import bcrypt

    path = folder / "htpasswd"
    path.write_bytes(USER.encode() + b":" + bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)) + b"\n")
    return {"htpasswd": {"realm": "edgephi", "path": str(path)}}


def docker_login(folder: Path, host: str, **entry: str) -> Path:
    """Write Docker's config.json with USER and PASSWORD for a host, or with another entry; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    login = entry or {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
    path = folder / "config.json"
    known = json.loads(path.read_text())["auths"] if path.exists() else {}
    path.write_text(json.dumps({"auths": known | {host: login}}))
    return folder


@dataclass(frozen=True)
class TlsFiles:
    """A server's key and certificate, and the authority that signed it."""

    authority: Path
    certificate: Path
    key: Path


def make_tls(folder: Path) -> TlsFiles:
    """Make a certificate for 127.0.0.1, localhost, registry.test and auth.test, and an authority that signs it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str, key: Any, issuer: str, issuer_key: Any, extension: Any) -> Any:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=True)
        )
        return builder.sign(issuer_key, hashes.SHA256())

    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = certificate(
        "authority", authority_key, "authority", authority_key, x509.BasicConstraints(ca=True, path_length=0)
    )
    names = [x509.DNSName(name) for name in ("localhost", "registry.test", "auth.test")]
    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))  # type: ignore[arg-type]
    server = certificate("server", key, "authority", authority_key, x509.SubjectAlternativeName(names))
    files = TlsFiles(folder / "authority.pem", folder / "server.pem", folder / "server.key")
    files.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    files.certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


Handle = Callable[[BaseHTTPRequestHandler], None]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Do nothing: tests let clients hang up on purpose."""


class Server:
    """An HTTP server, or with `tls` one for HTTPS, that answers as a test says, and remembers its requests."""

    def __init__(self, handle: Handle, tls: TlsFiles | None = None) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                asked.append((self.command, self.path, dict(self.headers)))
                handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Quiet(("127.0.0.1", 0), Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
            # The handshake is the thread's that answers: one client mustn't keep the others waiting.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def authorizations(self) -> list[str]:
        return [headers["Authorization"] for _, _, headers in self.asked if "Authorization" in headers]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Send one answer; underscores in the names of headers become hyphens."""
    handler.send_response(status)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    for name, value in ({"Content-Length": str(len(body))} | named).items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        with suppress(OSError):
            handler.wfile.write(body)


class EndlessServer(Server):
    """A server that sends `begin`, then up to 1000 MiB while the client reads; `more` counts those MiB."""

    def __init__(self, begin: bytes) -> None:
        self._begin, self.more = begin, 0
        super().__init__(self._pour)

    def _pour(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        with suppress(OSError):
            handler.wfile.write(self._begin)
            while self.more < 1000:
                handler.wfile.write(bytes(MIB))
                self.more += 1


class CuttingRelay:
    """A relay to a port of this machine; it cuts a connection that has passed the next number of bytes in `cuts`."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._to, self._cuts = ("127.0.0.1", port), list(cuts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def cuts_left(self) -> int:
        return len(self._cuts)

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection(self._to)
                for source, sink in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._pump, args=(source, sink, ours, theirs), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, *both: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                # Only connections with transfers pass enough bytes to be cut.
                if self._cuts and passed > self._cuts[0]:
                    self._cuts.pop(0)
                    break
                sink.sendall(data)
        for sock in both:
            # The socket is also closed: after a shutdown alone it would still accept data.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def bundle_of(folder: Path, files: dict[str, bytes], name: str = "nano-int4") -> Bundle:
    """A bundle of these files, as if it had been built."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return write_bundle(folder, manifest(tuple(describe_file(folder / path, path) for path in files), name=name))


def content(size: int, seed: bytes = b"seed") -> bytes:
    """Bytes without a period, the same for the same seed."""
    return hashlib.shake_256(seed).digest(size)
