"""Connections up to the login: from an address to an encrypted link whose host key is verified."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import paramiko

from toolkit.catalog.public_key import fingerprint
from toolkit.device.ssh.certificates import SUFFIX, host_certificate_fault
from toolkit.device.ssh.config import SshOptions, SshTarget
from toolkit.device.ssh.internals import GLOBAL_REQUEST, ListeningTransport, send_message
from toolkit.device.ssh.known_hosts import KnownKey, host_names, read_known_hosts
from toolkit.device.ssh.packets import BurstPacketizer
from toolkit.device.ssh.proxy import Proxy
from toolkit.errors import HostKeyChanged, HostKeyUnknown, HostUnreachable

LINK_TIMEOUT_S = 20
KEEPALIVE_S = 10
# Only Linux gives up a connection whose other side fell silent, and not even Linux one through a proxy or a half-dead
# router. One write of an upload takes SILENCE_S at 4 kB/s.
SILENCE_S = 60.0
_WATCH_S = 1.0
_READ_AHEAD_BYTES = 64 * 1024
_HANDSHAKE_TIMEOUT_S = 10.0
# sshd hangs up without a greeting while too many others are logging in (MaxStartups).
_TRIES, _PAUSE_S = 4, 0.5
# The signals' numbers, which shells add to 128, by their names in RFC 4254.
_SIGNALS = {"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "ABRT": 6, "FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11}
_SIGNALS |= {"USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15}


class _Transport(ListeningTransport):
    """paramiko's transport that also heeds `exit-signal`: else a command that was killed would look like a cut link.

    It also keeps the algorithms that the server offers, for the message when none of them is known here.
    """

    def __init__(self, sock: _Watched) -> None:
        self.key_order: tuple[str, ...] = ()
        super().__init__(sock, BurstPacketizer)

    def hear_request(self, channel: Any, message: Any) -> bool:
        if message.get_text() != "exit-signal":
            return False
        message.get_boolean()
        channel.exit_status = 128 + _SIGNALS.get(message.get_text(), 0)
        channel.status_event.set()
        return True

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        return self.key_order or tuple(super().preferred_keys)


class _Watched:
    """A socket that keeps the time of its last bytes in `heard_at`. paramiko takes it for a plain socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.heard_at = time.monotonic()
        self._ahead = b""

    def recv(self, count: int) -> bytes:
        # A server acknowledges a push in packets of some twenty bytes, each of which paramiko reads in two pieces.
        ahead = self._ahead or self._sock.recv(max(count, _READ_AHEAD_BYTES))
        self.heard_at = time.monotonic()
        data, self._ahead = ahead[:count], ahead[count:]
        return data

    def give_up(self) -> None:
        """Shut down and close, so that a reader or writer gets an error; close alone would leave a reader waiting."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def _watch(transport: Any, sock: _Watched) -> None:
    """End the connection once the server has sent nothing for SILENCE_S, though it was asked for answers."""
    while transport.is_active():
        if time.monotonic() - sock.heard_at > SILENCE_S:
            sock.give_up()
            return
        time.sleep(_WATCH_S)


def _ask_for_an_answer(transport: Any) -> None:
    """Send a request that every server answers, if only with a refusal; paramiko's own keepalive asks for no answer."""
    message = paramiko.Message()
    message.add_byte(GLOBAL_REQUEST)
    message.add_string("keepalive@openssh.com")
    message.add_boolean(True)
    send_message(transport, message)


@dataclass
class Link:
    """An encrypted connection. `where` begins every message about it: `pi5 (192.168.1.7:22)`."""

    transport: Any
    where: str
    options: SshOptions
    proxy: Proxy | None

    def watch(self) -> None:
        """From now on end the connection when the other side falls silent. Call this after the login: people take
        their time to answer."""
        transport = self.transport
        transport.packetizer.set_keepalive(KEEPALIVE_S, partial(_ask_for_an_answer, transport))
        threading.Thread(target=_watch, args=(transport, transport.sock), daemon=True).start()

    def close(self) -> None:
        self.transport.close()
        if self.proxy is not None:
            self.proxy.end()


@contextmanager
def connected(target: SshTarget, options: SshOptions, key_types: Sequence[str] = ()) -> Iterator[Link]:
    """Dial and negotiate. The link is closed if the block raises; else the caller closes it.

    `key_types` come first among the host key types. The host key isn't verified: `verify_host_key` does that.
    Raises HostUnreachable.
    """
    where = _where(target, options)
    # With no handler anywhere, logging prints paramiko's tracebacks on stderr.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    for pause_s in [_PAUSE_S * 2**n for n in range(_TRIES - 1)] + [None]:
        try:
            link = _connect(options, where, key_types)
            break
        except _HungUp as exc:
            if pause_s is None:
                raise HostUnreachable(exc.message, exc.hint) from exc
            time.sleep(pause_s)
    try:
        yield link
    except BaseException:
        link.close()
        raise


class _HungUp(HostUnreachable):
    """The server closed the connection before its greeting."""


def _connect(options: SshOptions, where: str, key_types: Sequence[str]) -> Link:
    proxy = Proxy(options.proxy_command) if options.proxy_command else None
    sock = None
    try:
        sock = proxy.sock if proxy is not None else _dial(options, where)
        return Link(_negotiated(sock, where, options, key_types), where, options, proxy)
    except BaseException as exc:
        if sock is not None:
            sock.close()
        said = proxy.end(patience_s=1) if proxy is not None else ""
        if proxy is not None and said and isinstance(exc, HostUnreachable):
            raise HostUnreachable(
                f"{where}: no way through the proxy: {said}", f"try what it runs: {proxy.command}"
            ) from exc
        raise


def known_keys(options: SshOptions) -> tuple[list[KnownKey], list[KnownKey]]:
    """The known_hosts lines about a host: under its full name, and under the bare name without port."""
    every = read_known_hosts(options.known_hosts)
    names = host_names(options.hostname, options.port, options.host_key_alias)
    exact = [key for key in every if key.names(names[0])]
    return exact, [key for key in every if len(names) > 1 and key.names(names[1])]


def known_key_types(options: SshOptions) -> list[str]:
    """The types of a host's known keys, to ask its server for one of those."""
    return [key.key_type for keys in known_keys(options) for key in keys if not key.marker]


def authorities(options: SshOptions) -> list[KnownKey]:
    """The known_hosts lines of keys that may certify this host's key."""
    return [key for keys in known_keys(options) for key in keys if key.marker == "@cert-authority"]


def verify_host_key(link: Link, name: str) -> None:
    """Look for the server's key, or for the authority that certified it, in the known_hosts files.

    Raises HostKeyUnknown, or HostKeyChanged when there is another key of that type or this one is revoked.
    """
    key = link.transport.get_remote_server_key()
    blob, key_type = key.asbytes(), key.get_name()
    exact, bare = known_keys(link.options)
    for entry in (*exact, *bare):
        if entry.marker == "@revoked" and entry.blob == blob:
            raise HostKeyChanged(f"{link.where}: host key is @revoked in {entry.file}:{entry.line}")
    if any(entry.blob == blob and not entry.marker for entry in (*exact, *bare)):
        return
    certificate = getattr(key, "public_blob", None)
    fault = None if certificate is None else _certificate_fault(link, certificate.key_blob)
    if certificate is not None and fault is None:
        return
    for entry in exact:
        if entry.key_type == key_type and not entry.marker:
            raise host_key_changed(link, name, entry, blob)
    kind = key_type.removeprefix("ssh-").split("-")[0]
    raise HostKeyUnknown(
        f"{link.where}: unknown host key {key_type} {fingerprint(blob)}"
        + (f"; its certificate doesn't count: {fault}" if fault else ""),
        f"check it on the device with 'ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub', "
        f"then: edgephi targets trust {name} {fingerprint(blob)}",
    )


def _certificate_fault(link: Link, blob: bytes) -> str | None:
    options = link.options
    revoked = {entry.blob for keys in known_keys(options) for entry in keys if entry.marker == "@revoked"}
    trusted = [entry.blob for entry in authorities(options) if entry.blob not in revoked]
    return host_certificate_fault(blob, [options.host_key_alias or options.hostname.lower()], trusted)


def host_key_changed(link: Link, name: str, entry: KnownKey, offered: bytes) -> HostKeyChanged:
    host = host_names(link.options.hostname, link.options.port, link.options.host_key_alias)[0]
    return HostKeyChanged(
        f"{link.where}: the host key has changed: {entry.file}:{entry.line} has {entry.key_type} "
        f"{fingerprint(entry.blob)}, the server offers {fingerprint(offered)}",
        f"if the device was reinstalled: ssh-keygen -R '{host}' -f {entry.file}, "
        f"then: edgephi targets trust {name} {fingerprint(offered)}; if not, somebody may be in between",
    )


def look_up(target: SshTarget, options: SshOptions) -> list[str]:
    """The addresses of a target's name. Raises HostUnreachable when it has none."""
    try:
        found = socket.getaddrinfo(options.hostname, options.port, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        raise _no_address(_where(target, options), options.hostname) from exc
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _where(target: SshTarget, options: SshOptions) -> str:
    return f"{target.name} ({options.hostname}:{options.port})"


def _no_address(where: str, hostname: str) -> HostUnreachable:
    return HostUnreachable(
        f"{where}: no address for the name '{hostname}'",
        "check the name, or use the IP address; NAME.local needs mDNS on this machine",
    )


def _dial(options: SshOptions, where: str) -> socket.socket:
    try:
        sock = socket.create_connection((options.hostname, options.port), options.connect_timeout_s)
    except socket.gaierror as exc:
        raise _no_address(where, options.hostname) from exc
    except ConnectionRefusedError as exc:
        raise HostUnreachable(
            f"{where}: connection refused",
            f"does sshd run there, on port {options.port}? On the device: sudo systemctl enable --now ssh",
        ) from exc
    except TimeoutError as exc:
        raise HostUnreachable(
            f"{where}: no answer within {options.connect_timeout_s:g} s",
            "is the device on and in the same network, and does no firewall drop the port?",
        ) from exc
    except OSError as exc:
        reason = exc.strerror or exc
        raise HostUnreachable(f"{where}: {reason}", "is the device in the same network?") from exc
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        # Nothing else ends a connection whose other side fell silent: paramiko would wait for ever.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LINK_TIMEOUT_S * 1000)
    return sock


def _negotiated(sock: socket.socket, where: str, options: SshOptions, key_types: Sequence[str]) -> Any:
    transport = None
    try:
        transport = _Transport(_Watched(sock))
        security = transport.get_security_options()
        # Sorting is stable. AES-GCM moves twice as much as paramiko's first choice.
        security.ciphers = sorted(security.ciphers, key=lambda name: "-gcm@" not in name)
        transport.key_order = _key_order(transport.preferred_keys, options, key_types)
        transport.banner_timeout = transport.handshake_timeout = _HANDSHAKE_TIMEOUT_S
        transport.start_client(timeout=_HANDSHAKE_TIMEOUT_S)
        transport.get_remote_server_key()  # start_client returns without an error when its time is over
    except (paramiko.SSHException, EOFError, OSError) as exc:
        if transport is not None:
            with suppress(OSError):
                transport.close()
        raise _no_handshake(transport, where, exc) from exc
    return transport


def _key_order(known: Sequence[str], options: SshOptions, key_types: Sequence[str]) -> tuple[str, ...]:
    """The host key types, best first: certificates if known_hosts has an authority, then the types of the known keys.

    Types that HostKeyAlgorithms leaves out are dropped, unless it leaves out all.
    """
    certified = bool(authorities(options))
    order = sorted(known, key=lambda name: (not (certified and name.endswith(SUFFIX)), _family(name) not in key_types))
    allowed = [name for name in order if not options.host_key_algorithms or name in options.host_key_algorithms]
    return tuple(allowed or order)


def _no_handshake(transport: Any, where: str, exc: BaseException) -> HostUnreachable:
    reason, hint = str(exc) or "the server closed the connection", "is it an SSH server that listens there?"
    if isinstance(exc, paramiko.IncompatiblePeer) and transport.offered:
        wanted = "server_key_algo_list" if "host key" in reason else "kex_algo_list"
        wanted = "server_encrypt_algo_list" if "cipher" in reason else wanted
        offers = ", ".join(name for name in transport.offered.get(wanted, ()) if "kex-strict" not in name)
        return HostUnreachable(
            f"{where}: no SSH handshake: {reason}; the server offers only {offers}",
            "let its sshd offer a common one too: KexAlgorithms +curve25519-sha256, HostKeyAlgorithms +ssh-ed25519 or "
            "Ciphers +aes128-gcm@openssh.com; update it if it can't",
        )
    if isinstance(exc.__context__, (EOFError, ConnectionError)) and not transport.remote_version:
        return _HungUp(f"{where}: no SSH handshake: the server hung up without a greeting", hint)
    return HostUnreachable(f"{where}: no SSH handshake: {reason}", hint)


def _family(key_type: str) -> str:
    return "ssh-rsa" if key_type.startswith("rsa-sha2-") else key_type
