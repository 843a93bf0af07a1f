"""Pipelined SFTP writes in which every acknowledgement counts."""

from __future__ import annotations

from typing import Any

from paramiko.sftp import CMD_WRITE, int64

# OpenSSH takes packets of 256 KiB, header included; paramiko's own 32 KiB halve the throughput.
CHUNK_BYTES = 255 * 1024
_IN_FLIGHT = 32


class Upload:
    """Writes to one open remote file from `offset` on, with up to 8 MiB under way.

    paramiko's `set_pipelined` drops the last acknowledgements on close: a disk that fills up at the end of a
    file would go unnoticed. Errors are the server's OSError, or paramiko's when the link breaks.
    """

    def __init__(self, sftp: Any, file: Any, offset: int) -> None:
        self.acknowledged = offset
        self._reported = offset
        self._position = offset
        self._sftp = sftp
        self._handle = file.handle
        self._pending: dict[int, int] = {}
        self._error: OSError | None = None

    def write(self, chunk: bytes) -> int:
        """Send up to CHUNK_BYTES; gives the bytes acknowledged meanwhile. Raises an earlier write's error."""
        channel = self._sftp.get_channel()
        while len(self._pending) >= _IN_FLIGHT or (self._pending and channel.recv_ready()):
            self._sftp._read_response()
        if self._error is not None:
            raise self._error
        number = self._sftp._async_request(self, CMD_WRITE, self._handle, int64(self._position), chunk)
        self._pending[number] = len(chunk)
        self._position += len(chunk)
        return self._news()

    def finish(self) -> int:
        """Wait for every acknowledgement still due; their bytes. Raises the first error among them."""
        while self._pending:
            self._sftp._read_response()
        if self._error is not None:
            raise self._error
        return self._news()

    def _news(self) -> int:
        news, self._reported = self.acknowledged - self._reported, self.acknowledged
        return news

    def _async_response(self, _type: int, message: Any, number: int) -> None:
        """What SFTPClient calls with the answer to each request that names this object."""
        size = self._pending.pop(number)
        try:
            self._sftp._convert_status(message)
        except (OSError, EOFError) as exc:
            self._error = self._error or OSError(*exc.args)
        if self._error is None:
            self.acknowledged += size
