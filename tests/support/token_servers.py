"""Servers of tokens, on an origin of their own or before a registry as in Harbor; and a proxy for made-up names."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.registries import PASSWORD, USER, Server, TlsFiles, make_tls, reply


class TokenServer(Server):
    """A server that gives tokens to USER with PASSWORD, or for the refresh token `refresh`; others may pull `open/…`.

    `auth` is the configuration with which a registry accepts its tokens. With `tls` it speaks HTTPS, as `name`.
    """

    def __init__(self, folder: Path, tls: TlsFiles | None = None, name: str = "127.0.0.1") -> None:
        super().__init__(self._answer, tls)
        files = make_tls(folder)
        self._key, self._certificate = files.key.read_bytes(), files.certificate.read_bytes()
        self.name = f"{name}:{self.port}"
        self.auth = {
            "token": {
                "realm": f"{'http' if tls is None else 'https'}://{self.name}/token",
                "service": "edgephi-test",
                "issuer": "issuer",
                "rootcertbundle": str(files.authority),
            }
        }

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self._give(handler)

    def _give(self, handler: BaseHTTPRequestHandler) -> None:
        fields = parse_qs(urlsplit(handler.path).query)
        if handler.command == "POST":
            fields = parse_qs(handler.rfile.read(int(handler.headers["Content-Length"])).decode())
        login = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        known = handler.headers.get("Authorization") == login or fields.get("refresh_token") == ["refresh"]
        if "Authorization" in handler.headers and not known:
            return reply(handler, 401, b"{}")
        kind, rest = fields["scope"][0].split(":", 1)
        name, actions = rest.rsplit(":", 1)
        granted = actions.split(",") if known else ["pull"] if name.startswith("open/") else []
        access = [{"type": kind, "name": name, "actions": granted}]
        return reply(handler, 200, json.dumps({"token": self._token(access)}).encode())

    def _token(self, access: list[dict[str, Any]]) -> str:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        key = serialization.load_pem_private_key(self._key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        der = x509.load_pem_x509_certificate(self._certificate).public_bytes(serialization.Encoding.DER)
        now = int(time.time())
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        claims = {"iss": "issuer", "sub": "", "aud": "edgephi-test", "exp": now + 600, "nbf": now - 60, "iat": now}
        text = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims | {"access": access}))
        r, s = utils.decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


class Front(TokenServer):
    """One origin for tokens and for a registry, which listens on port `behind` of this machine.

    Without `keeps` each connection is closed after its answer, and without a word before.
    """

    behind = 0

    def __init__(self, folder: Path, tls: TlsFiles, name: str, *, keeps: bool = True) -> None:
        self._keeps = keeps
        super().__init__(folder, tls, name)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/token"):
            self._give(handler)
        else:
            self._relay(handler)
        handler.close_connection = handler.close_connection or not self._keeps

    def _relay(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        link = http.client.HTTPConnection("127.0.0.1", self.behind)
        link.request(handler.command, handler.path, body, {**handler.headers, "X-Forwarded-Proto": "https"})
        answer = link.getresponse()
        handler.send_response(answer.status)
        for name, value in answer.getheaders():
            if name not in ("Date", "Server"):
                handler.send_header(name, value)
        handler.end_headers()
        while block := answer.read(1 << 16):
            handler.wfile.write(block)
        link.close()


class Tunnels:
    """An HTTP proxy that knows only CONNECT, and connects to this machine whatever the name."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Tunnels:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                head = b""
                while b"\r\n\r\n" not in head:
                    head += ours.recv(4096)
                target = head.split()[1].decode()
                self.asked.append(target)
                theirs = socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])))
                ours.sendall(b"HTTP/1.1 200 here you are\r\n\r\n")
                for source, sink in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        # The end of one side is that of the other.
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
