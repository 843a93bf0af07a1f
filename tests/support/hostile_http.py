"""HTTP answers that Hypothesis makes up, from a real server: for property-based tests of those who read them."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st

from tests.support.untrusted_inputs import raw

_STATUSES = [200, 201, 202, 204, 206, 301, 302, 307, 308, 400, 401, 403, 404, 416, 418, 429, 500, 503, 999]
_HEADERS = [
    "Content-Length",
    "Content-Range",
    "Content-Type",
    "Content-Encoding",
    "Docker-Content-Digest",
    "Location",
    "Range",
    "Retry-After",
    "Transfer-Encoding",
    "WWW-Authenticate",
    "Connection",
    "X-Other",
]
_VALUES = [
    *("", "0", "-1", "5", "9" * 5000, "\u00b2", "1e3", "0x10", "5, 5", "nan"),
    *("gzip", "chunked", "chunked, gzip", "close"),
    *("bytes 0-4/5", "bytes 9-2/1", "0-4", "bytes=0-" + "9" * 5000, "sha256:" + "a" * 64, "\x1b]0;x"),
    *("http://[::1/", "http://[", "http://", "http://\u00e9/", "http://127.0.0.1:99999/", "https://a:b@c/"),
    *("//", "?", "/v2/x", "http://HERE/elsewhere"),
    *("Basic", "Bearer", "Bearer " * 500, 'Basic realm="' + '\\\\"' * 99),
    *('Bearer realm="http://[::1/"', 'Bearer realm=""', 'Bearer realm="https://127.0.0.1:1/t",service="'),
    'Bearer realm="http://HERE/t",service="s"',
]


def answers(document: Any = None) -> st.SearchStrategy[bytes]:
    """The bytes of an answer, whole or not: any status, headers that lie, a body of `document` or of anything."""
    value = st.sampled_from(_VALUES) | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=30)
    headers = st.lists(st.tuples(st.sampled_from(_HEADERS), value), max_size=5)
    whole = st.builds(_answer, st.sampled_from(_STATUSES), headers, raw(document), st.booleans())
    status_line = st.sampled_from([b"", b"HTTP/1.1", b"HTTP/9.9 200 x", b"HTTP/1.1 abc x", b"HTTP/1.1 99999999999 x"])
    odd = st.builds(lambda line, rest: line + b"\r\n" + rest, status_line, st.binary(max_size=100))
    return st.one_of(
        whole, whole, whole, st.builds(lambda answer, size: answer[:size], whole, st.integers(0, 200)), odd
    )


def _answer(status: int, headers: list[tuple[str, str]], body: bytes, measured: bool) -> bytes:
    lines = [f"HTTP/1.1 {status} as you like", *(f"{name}: {value}" for name, value in headers)]
    if measured:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Scripted:
    """A server that gives the next of `script` to each request, the last one again and again, and then hangs up."""

    def __init__(self) -> None:
        self.script: list[bytes] = [b""]
        self.asked = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def begin(self, script: list[bytes]) -> None:
        """Answer with these from now on; HERE in them is this server."""
        self.script = [answer.replace(b"HERE", self.host.encode()) for answer in script]
        self.asked = 0

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(link,), daemon=True).start()

    def _talk(self, link: socket.socket) -> None:
        with link, suppress(OSError):
            self._answer(link)

    def _answer(self, link: socket.socket) -> None:
        link.settimeout(5)
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := link.recv(65536)):
                return
            head += data
        answer = self.script[min(self.asked, len(self.script) - 1)]
        self.asked += 1
        link.sendall(answer)
        link.shutdown(socket.SHUT_WR)
        # Without this the client's rest would be answered with a reset, which may overtake the answer.
        while link.recv(65536):
            pass

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
