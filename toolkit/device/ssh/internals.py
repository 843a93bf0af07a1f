"""Every part of paramiko that it doesn't offer: names that begin with `_`, and constants that it doesn't export.

No other module names one. A new release may change each without a word: tests/device/ssh/test_internals.py tells which
one it changed. pyproject.toml therefore has an upper bound (docs/decisions/0014-ssh-clients.md).
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import paramiko
from paramiko.agent import AgentSSH
from paramiko.common import MSG_CHANNEL_REQUEST, cMSG_CHANNEL_DATA, cMSG_CHANNEL_REQUEST, cMSG_GLOBAL_REQUEST
from paramiko.sftp import CMD_EXTENDED, CMD_OPEN, CMD_WRITE, SFTP_FLAG_CREATE, SFTP_FLAG_TRUNC, SFTP_FLAG_WRITE

# The first byte of messages that are built in this package (RFC 4254); paramiko exports none of them.
CHANNEL_DATA: bytes = cMSG_CHANNEL_DATA
CHANNEL_REQUEST: bytes = cMSG_CHANNEL_REQUEST
GLOBAL_REQUEST: bytes = cMSG_GLOBAL_REQUEST
# SFTP's requests, and the flags of OPEN (draft-ietf-secsh-filexfer-02); paramiko exports the codes of answers alone.
OPEN: int = CMD_OPEN
WRITE: int = CMD_WRITE
EXTENDED: int = CMD_EXTENDED
TO_WRITE: int = SFTP_FLAG_WRITE
TO_CREATE: int = SFTP_FLAG_CREATE
TO_TRUNCATE: int = SFTP_FLAG_TRUNC


def send_message(transport: Any, message: Any) -> None:
    """Send a message of our own, as soon as no keys are being exchanged; the packetizer gets it as it is.

    The public methods send messages of a few kinds: no signal to a command, and no request without waiting for its
    answer.
    """
    transport._send_user_message(message)


def window_of(channel: Any) -> Callable[[int], int]:
    """A function that takes up to so many bytes of the server's window, waiting for some, and returns how many: 0
    once the channel is closed. It is called with `channel.lock` held.

    Public `send` takes a packet's worth and sends it at once. Bound here, since every packet calls it.
    """
    waits: Callable[[int], int] = channel._wait_for_send_window
    return waits


def ask_for_new_keys(packetizer: Any) -> None:
    """Have the transport exchange keys when it next can.

    Public `Transport.renegotiate_keys` waits for their end, which a sender that is in the middle of a packet mustn't.
    """
    packetizer._trigger_rekey()


def sftp_request(sftp: Any, kind: int, *arguments: Any) -> Any:
    """Send a request, and wait for its answer: the message, read up to the request's number. Raises OSError when the
    server refuses.

    SFTPClient has no public method for `statvfs@openssh.com`, and its `open` gives a new file no mode.
    """
    return sftp._request(kind, *arguments)[1]


class LaterAnswers(ABC):
    """Something that sends requests over an SFTP session, and gets the answers as they come.

    SFTPClient's public methods wait for each answer, and its pipelined files drop the last ones.
    """

    def __init__(self, sftp: Any) -> None:
        self._session = sftp
        # Reads one answer, waiting for it, and hands it to whoever has asked.
        self._read_answer: Callable[[], object] = sftp._read_response
        # Raises OSError, or EOFError, for an answer that says so.
        self._raise_refusal: Callable[[Any], None] = sftp._convert_status
        self._numbers, self._expected = sftp._lock, sftp._expecting

    def _next_number(self) -> int:
        """A number for the next request: its answer will come to `_answered`."""
        with self._numbers:
            number = int(self._session.request_number)
            self._session.request_number = number + 1
            self._expected[number] = self
        return number

    @abstractmethod
    def _answered(self, message: Any, number: int) -> None:
        """Take the answer to the request of that number."""

    def _async_response(self, _kind: int, message: Any, number: int) -> None:
        self._answered(message, number)


def _on_channel_request(channel: Any, message: Any) -> None:
    if not channel.get_transport().hear_request(channel, message):
        message.rewind()
        message.get_int()  # the channel's number, which the caller had read
        paramiko.Channel._handle_request(channel, message)


class ListeningTransport(paramiko.Transport):  # type: ignore[misc]
    """paramiko's, which keeps what the server offers, and tells of what it asks on a channel.

    Publicly neither can be had: paramiko forgets an offer once it has read it, and heeds `exit-status` alone.
    """

    _channel_handler_table: ClassVar[dict[int, Any]] = {
        **paramiko.Transport._channel_handler_table,
        MSG_CHANNEL_REQUEST: _on_channel_request,
    }

    def __init__(self, sock: Any, packetizer_class: type[Any]) -> None:
        self.offered: dict[str, list[str]] = {}
        super().__init__(sock, packetizer_class=packetizer_class)

    def hear_request(self, channel: Any, message: Any) -> bool:  # noqa: ARG002
        """Deal with a request of the server and return True, or leave it to paramiko."""
        return False

    def _really_parse_kex_init(self, m: Any, ignore_first_byte: bool = False) -> Any:
        parsed = super()._really_parse_kex_init(m, ignore_first_byte)
        if not ignore_first_byte:  # else it is our own
            self.offered = parsed
        return parsed


class SocketAgent(paramiko.Agent):  # type: ignore[misc]
    """An agent at a socket of its own, one without keys for an empty path: paramiko's knows SSH_AUTH_SOCK's alone."""

    def __init__(self, path: str) -> None:
        AgentSSH.__init__(self)
        if path:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(path)
            self._connect(connection)
