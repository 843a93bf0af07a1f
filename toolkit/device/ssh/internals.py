"""Every part of paramiko in use that isn't public: names that begin with `_`, and constants that it doesn't export.

No other module names one. A new release may change each without notice: tests/device/ssh/test_internals.py names those
that it changed. pyproject.toml therefore has an upper bound (docs/decisions/0014-ssh-clients.md).
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import paramiko
from paramiko.agent import AgentSSH
from paramiko.common import (
    MSG_CHANNEL_REQUEST,
    MSG_USERAUTH_BANNER,
    cMSG_CHANNEL_DATA,
    cMSG_CHANNEL_REQUEST,
    cMSG_GLOBAL_REQUEST,
)
from paramiko.sftp import CMD_EXTENDED, CMD_OPEN, CMD_WRITE, SFTP_FLAG_CREATE, SFTP_FLAG_TRUNC, SFTP_FLAG_WRITE

# The first byte of messages that are built in this package (RFC 4254); paramiko exports none of them.
CHANNEL_DATA: bytes = cMSG_CHANNEL_DATA
CHANNEL_REQUEST: bytes = cMSG_CHANNEL_REQUEST
GLOBAL_REQUEST: bytes = cMSG_GLOBAL_REQUEST
# The type of a server's words before the login (RFC 4252).
USERAUTH_BANNER: int = MSG_USERAUTH_BANNER
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
    """A function that takes up to a given number of bytes from the server's window, waiting until it has some, and
    returns the number taken: 0 once the channel is closed. Call it with `channel.lock` held.

    Public `send` takes a packet's worth and sends it at once. The method is bound here, since every packet calls it.
    """
    waits: Callable[[int], int] = channel._wait_for_send_window
    return waits


def ask_for_new_keys(packetizer: Any) -> None:
    """Have the transport exchange keys when it next can.

    Public `Transport.renegotiate_keys` waits until the keys are there; a sender in the middle of a packet mustn't.
    """
    packetizer._trigger_rekey()


def sftp_request(sftp: Any, kind: int, *arguments: Any) -> Any:
    """Send a request and wait for its answer; return the message, read past the request's number. Raises OSError when
    the server refuses.

    SFTPClient has no public method for `statvfs@openssh.com`, and its `open` gives a new file no mode.
    """
    return sftp._request(kind, *arguments)[1]


class LaterAnswers(ABC):
    """A sender of requests over an SFTP session that gets the answers as they come.

    SFTPClient's public methods wait for each answer, and its pipelined files drop the last ones.
    """

    def __init__(self, sftp: Any) -> None:
        self._session = sftp
        # Waits for one answer, and hands it to the sender of its request.
        self._read_answer: Callable[[], object] = sftp._read_response
        # Raises OSError, or EOFError, for an answer that reports an error.
        self._raise_refusal: Callable[[Any], None] = sftp._convert_status
        self._numbers, self._expected = sftp._lock, sftp._expecting

    def _next_number(self) -> int:
        """Take a number for the next request, whose answer will come to `_answered`."""
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
    """paramiko's transport, which also keeps the server's offers and passes on the server's requests on a channel.

    paramiko makes neither public: it forgets an offer once it has read it, and heeds `exit-status` alone.
    """

    _channel_handler_table: ClassVar[dict[int, Any]] = {
        **paramiko.Transport._channel_handler_table,
        MSG_CHANNEL_REQUEST: _on_channel_request,
    }

    def __init__(self, sock: Any, packetizer_class: type[Any]) -> None:
        self.offered: dict[str, list[str]] = {}
        super().__init__(sock, packetizer_class=packetizer_class)

    def hear_request(self, channel: Any, message: Any) -> bool:  # noqa: ARG002
        """Deal with a request of the server and return True, or return False to leave it to paramiko."""
        return False

    def _really_parse_kex_init(self, m: Any, ignore_first_byte: bool = False) -> Any:
        parsed = super()._really_parse_kex_init(m, ignore_first_byte)
        if not ignore_first_byte:  # else the offer is our own
            self.offered = parsed
        return parsed


class SocketAgent(paramiko.Agent):  # type: ignore[misc]
    """The agent at a given socket, one without keys for an empty path: paramiko's knows that of SSH_AUTH_SOCK alone."""

    def __init__(self, path: str) -> None:
        AgentSSH.__init__(self)
        if path:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(path)
            self._connect(connection)
