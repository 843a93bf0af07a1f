"""HTTP answers that never end, however long they are waited for."""

from __future__ import annotations

import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
# The begin of an answer, and what follows again and again: each byte comes in time for a socket's own limit.
DRIBBLES = {
    "status": (b"", b"H"),
    "header": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "length of a chunk": (_CHUNKED, b"0"),
    "extension of a chunk": (_CHUNKED + b"1\r\nx\r\n1;", b"x"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
    "error": (b"HTTP/1.1 500 no\r\nContent-Length: 100000\r\n\r\n", b"["),
}


def dribbling(handler: BaseHTTPRequestHandler, begin: bytes, piece: bytes, pause_s: float) -> None:
    """Send `begin`, then `piece` every `pause_s` until the client hangs up."""
    handler.close_connection = True
    with suppress(OSError):
        handler.wfile.write(begin)
        while True:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause_s)
