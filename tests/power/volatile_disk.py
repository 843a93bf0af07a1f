"""A disk that records every write and flush, and so can give its content after a power cut at any moment."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

SECTOR = 512

# The network block device protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
_GREETING = b"NBDMAGICIHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_INFO, _OPT_GO = 1, 2, 6, 7
_OPT_REPLY, _REP_ACK, _REP_INFO, _REP_UNSUPPORTED = 0x3E889045565A9, 1, 3, 2**31 + 1
_HAS_FLAGS, _SEND_FLUSH = 1, 4
_REQUEST, _REPLY = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3


@dataclass(frozen=True)
class Write:
    """Data whose write the disk has acknowledged to the machine."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Flush:
    """A flush that the disk has acknowledged: all earlier writes are durable."""


@dataclass(frozen=True)
class Phase:
    """A named action of the host, during which the log grew from `start` to `end`."""

    name: str
    start: int
    end: int


@dataclass
class Recording:
    """A disk's first content, the writes and flushes since, and the host's actions behind them."""

    first: bytes
    log: list[Write | Flush] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)

    def so_far(self) -> Recording:
        """A copy that no longer grows."""
        return Recording(self.first, list(self.log), list(self.phases))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the writes and flushes within the block as those of phase `name`."""
        start = len(self.log)
        yield
        self.phases.append(Phase(name, start, len(self.log)))

    def cut(self, position: int, chance: random.Random) -> bytearray:
        """The disk after a power cut before the log's entry `position`: all flushed writes, and a random choice of the
        sectors written since. So a write may be lost while a later one is there, and may be torn.
        """
        disk = bytearray(self.first)
        volatile: list[Write] = []
        for entry in self.log[:position]:
            if isinstance(entry, Write):
                volatile.append(entry)
            else:
                for write in volatile:
                    _apply(disk, write)
                volatile.clear()
        keep = chance.random()
        for write in volatile:
            for sector in _sectors(write):
                if chance.random() < keep:
                    _apply(disk, sector)
        return disk


def _apply(disk: bytearray, write: Write) -> None:
    disk[write.offset : write.offset + len(write.data)] = write.data


def _sectors(write: Write) -> Iterator[Write]:
    for start in range(0, len(write.data), SECTOR):
        yield Write(write.offset + start, write.data[start : start + SECTOR])


class VolatileDisk:
    """A server of a disk to one machine at a time, over a Unix socket, which records its writes and flushes."""

    def __init__(self, first: bytes, path: Path) -> None:
        self.path = path
        self.recording = Recording(bytes(first))
        self._disk = bytearray(first)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def blockdev(self) -> str:
        """The disk as an option of qemu's `-blockdev`."""
        return f"driver=nbd,server.type=unix,server.path={self.path},export=disk"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._listener, self._connection):
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                self._connection, _ = self._listener.accept()
                # A machine whose power is cut leaves in the middle of a message.
                with self._connection as sock, suppress(EOFError, ConnectionError):
                    if self._agree(sock):
                        self._answer(sock)

    def _agree(self, sock: socket.socket) -> bool:
        """Negotiate with the machine; tell if it wants the disk."""
        sock.sendall(_GREETING + struct.pack(">H", _FIXED_NEWSTYLE | _NO_ZEROES))
        _take(sock, 4)
        export = struct.pack(">QH", len(self._disk), _HAS_FLAGS | _SEND_FLUSH)
        while True:
            _, option, length = struct.unpack(">QII", _take(sock, 16))
            _take(sock, length)
            if option == _OPT_EXPORT_NAME:
                sock.sendall(export)
                return True
            if option in (_OPT_GO, _OPT_INFO):
                sock.sendall(_option_reply(option, _REP_INFO, struct.pack(">H", 0) + export))
                sock.sendall(_option_reply(option, _REP_ACK))
                if option == _OPT_GO:
                    return True
            elif option == _OPT_ABORT:
                sock.sendall(_option_reply(option, _REP_ACK))
                return False
            else:
                sock.sendall(_option_reply(option, _REP_UNSUPPORTED))

    def _answer(self, sock: socket.socket) -> None:
        while True:
            magic, _, kind, handle, offset, length = struct.unpack(">IHHQQI", _take(sock, 28))
            assert magic == _REQUEST
            reply = b""
            if kind == _READ:
                reply = bytes(self._disk[offset : offset + length])
            elif kind == _WRITE:
                write = Write(offset, _take(sock, length))
                _apply(self._disk, write)
                self.recording.log.append(write)
            elif kind == _FLUSH:
                self.recording.log.append(Flush())
            elif kind == _DISCONNECT:
                return
            else:
                raise ConnectionError(f"a request that wasn't offered: {kind}")
            sock.sendall(struct.pack(">IIQ", _REPLY, 0, handle) + reply)


def _option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", _OPT_REPLY, option, kind, len(data)) + data


def _take(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
