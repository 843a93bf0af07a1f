"""Bulk data in packets that are sealed with AES-GCM and sent many at a time; paramiko would copy each a dozen times.

paramiko does everything else, and with other ciphers this too.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from paramiko import Packetizer

from toolkit.device.ssh.internals import CHANNEL_DATA, USERAUTH_BANNER, ask_for_new_keys, send_message, window_of

_BLOCK_BYTES = 16
_TAG_BYTES = 16
_HEADER = struct.Struct(">IB")
_DATA_HEAD = struct.Struct(">cII")
_LEAST_PADDING = 4


@dataclass(frozen=True)
class _Data:
    """A message of channel data, as paramiko's packetizer takes one."""

    head: bytes
    body: memoryview

    def asbytes(self) -> bytes:
        return self.head + self.body


class _Burst(list[_Data]):
    """Messages that leave together."""


class BurstPacketizer(Packetizer):  # type: ignore[misc]
    """paramiko's packetizer, which also takes a burst of messages in place of one.

    `hear_banner` gets each of the server's banners as it comes; paramiko keeps the last one, and tells nobody.
    """

    # The limits of RFC 4344 for ciphers with 128-bit blocks, as OpenSSH has them; paramiko changes keys each 512 MiB.
    REKEY_BYTES = 2**36
    REKEY_PACKETS = 2**31

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self.hear_banner: Callable[[str], object] | None = None
        self._sending = threading.RLock()
        self._seal: Any = None
        self._fixed, self._counter = b"", 0
        self._sealed_bytes = 0
        self._plain, self._out = bytearray(), bytearray()

    def set_outbound_cipher(self, block_engine: Any, *args: Any, **options: Any) -> None:
        with self._sending:
            super().set_outbound_cipher(block_engine, *args, **options)
            self._seal, self._sealed_bytes = None, 0
            if options.get("aead"):
                self._seal = block_engine.encrypt
                iv = options["iv_out"]
                self._fixed, self._counter = iv[:4], int.from_bytes(iv[4:], "big")

    def read_message(self) -> tuple[int, Any]:
        kind, message = super().read_message()
        if kind == USERAUTH_BANNER and self.hear_banner is not None:
            self.hear_banner(message.get_string().decode("utf-8", "replace"))
            message.rewind()
        return kind, message

    def send_message(self, data: Any) -> None:
        messages = data if isinstance(data, _Burst) else (data,)
        with self._sending:
            if self._seal is None:
                for message in messages:
                    super().send_message(message)
            else:
                self._send_sealed(messages)

    def _send_sealed(self, messages: Iterable[Any]) -> None:
        length = 0
        for message in messages:
            head, body = (message.head, message.body) if isinstance(message, _Data) else (message.asbytes(), b"")
            length += self._seal_one(head, body, length)
        with memoryview(self._out) as out:
            self.write_all(out[:length])
        self._sealed_bytes += length
        if self._sealed_bytes >= self.REKEY_BYTES and not self.need_rekey():
            ask_for_new_keys(self)

    def _seal_one(self, head: bytes, body: bytes | memoryview, at: int) -> int:
        """Put a packet into the outgoing buffer `at` a position; return its length."""
        size = len(head) + len(body)
        padding = _LEAST_PADDING + -(1 + size + _LEAST_PADDING) % _BLOCK_BYTES
        end = _HEADER.size + size + padding
        if len(self._plain) < end:
            self._plain = bytearray(2 * end)
        if len(self._out) < at + end + _TAG_BYTES:
            self._out.extend(bytes(at + end + _TAG_BYTES))
        plain, start = self._plain, _HEADER.size + len(head)
        _HEADER.pack_into(plain, 0, 1 + size + padding, padding)
        plain[_HEADER.size : start] = head
        plain[start : start + len(body)] = body
        plain[end - padding : end] = os.urandom(padding)
        with memoryview(plain) as view:
            sealed = self._seal(self._fixed + self._counter.to_bytes(8, "big"), view[4:end], plain[:4])
        self._counter = (self._counter + 1) % 2**64
        self._out[at : at + 4] = plain[:4]
        self._out[at + 4 : at + end + _TAG_BYTES] = sealed
        return end + _TAG_BYTES


def send_all(channel: Any, data: memoryview) -> None:
    """Do as `channel.sendall`, but send as many packets at once as the server's window has room for.

    Raises OSError when the channel is closed.
    """
    take_window = window_of(channel)
    while data:
        burst = _Burst()
        with channel.lock:
            if channel.closed:
                raise OSError("socket is closed")
            while data and (not burst or channel.out_window_size):
                size = take_window(len(data))
                if size == 0:
                    raise OSError("socket is closed")
                head = _DATA_HEAD.pack(CHANNEL_DATA, channel.remote_chanid, size)
                burst.append(_Data(head, data[:size]))
                data = data[size:]
        # Not under the channel's lock: this may wait for new keys.
        send_message(channel.transport, burst)
