"""Pipelined SFTP writes in which every acknowledgement counts."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import FileIO
from typing import Any

from toolkit.device.ssh.internals import WRITE, LaterAnswers

# OpenSSH takes packets of 256 KiB, header included; paramiko's own 32 KiB halve the throughput.
CHUNK_BYTES = 255 * 1024
_IN_FLIGHT = 32
_LENGTH = struct.Struct(">I")
# Packet's length, its type, the request's number, the handle's length.
_HEAD = struct.Struct(">IBII")
# Offset in the file, and the data's length.
_PLACE = struct.Struct(">QI")


class PipelinedWrite(LaterAnswers):
    """Writes to one open remote file from `offset` on, with up to 8 MiB under way.

    paramiko's `set_pipelined` drops the last acknowledgements on close: a disk that fills up at the end of a
    file would go unnoticed. Errors are the server's OSError, or paramiko's when the link breaks.
    """

    def __init__(self, sftp: Any, file: Any, offset: int, send_all: Callable[[memoryview], None]) -> None:
        super().__init__(sftp)
        self.acknowledged = offset
        self._reported = offset
        self._position = offset
        self._send_all = send_all
        self._handle = file.handle
        self._data_at = _HEAD.size + len(self._handle) + _PLACE.size
        # Every write uses this one packet: a fresh one each time would cost more than its encryption.
        self._packet = memoryview(bytearray(self._data_at + CHUNK_BYTES))
        self._packet[_HEAD.size : _HEAD.size + len(self._handle)] = self._handle
        self._pending: dict[int, int] = {}
        self._error: OSError | None = None

    def read(self, source: FileIO, count: int) -> int:
        """Fetch up to `count` bytes, CHUNK_BYTES at most, for the next `write`; return their number."""
        return source.readinto(self._packet[self._data_at : self._data_at + min(count, CHUNK_BYTES)]) or 0

    def write(self, count: int) -> int:
        """Send the `count` bytes read last; return the number acknowledged since. Raises an earlier write's error."""
        stream = self._session.get_channel()
        while len(self._pending) >= _IN_FLIGHT or (self._pending and stream.recv_ready()):
            self._read_answer()
        if self._error is not None:
            raise self._error
        number = self._next_number()
        self._pending[number] = count
        end = self._data_at + count
        _HEAD.pack_into(self._packet, 0, end - _LENGTH.size, WRITE, number, len(self._handle))
        _PLACE.pack_into(self._packet, self._data_at - _PLACE.size, self._position, count)
        self._send_all(self._packet[:end])
        self._position += count
        return self._news()

    @property
    def is_pending(self) -> bool:
        """Whether acknowledgements are still due, or an error is."""
        return bool(self._pending) or self._error is not None

    def settle(self) -> int:
        """Wait for one acknowledgement that is due; return the number of its bytes. Raises the first error of all."""
        if self._pending:
            self._read_answer()
        if self._error is not None and not self._pending:
            raise self._error
        return self._news()

    def _news(self) -> int:
        news, self._reported = self.acknowledged - self._reported, self.acknowledged
        return news

    def _answered(self, message: Any, number: int) -> None:
        size = self._pending.pop(number)
        try:
            self._raise_refusal(message)
        except (OSError, EOFError) as exc:
            self._error = self._error or OSError(*exc.args)
        if self._error is None:
            self.acknowledged += size
