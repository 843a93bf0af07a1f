"""Addresses as people write them: USER@HOST:PORT, taken apart, and the names that can stand in it. Pure."""

from __future__ import annotations

import ipaddress
import re

from toolkit.errors import ConfigError

# The characters of a user name that ssh refuses, or that a ProxyCommand's shell reads as something else.
_NOT_IN_USERS = re.compile(r"['\"`;&<>|(){}*?\[\]]|\$(?!\Z)|\\\Z|\A[-~#]")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_IPV6_CHARACTERS = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")


def user_name(name: str) -> str:
    """A login name. Raises ValueError that names a character by which ssh or a shell would take it for another."""
    wrong = _NOT_IN_USERS.search(name)
    character = wrong[0] if wrong else next((one for one in name if one.isspace() or not one.isprintable()), None)
    if character is not None:
        raise ValueError(f"{name!r} is not a user name: ssh, or a ProxyCommand's shell, would misread {character!r}")
    return name


def host_name(host: str) -> str:
    """A host name, an address or an alias, without user and port. Raises ValueError for anything else."""
    # The message doesn't repeat the text: somebody may have written a login with its password.
    if "@" in host:
        raise ValueError("the user goes into `user`, not before the host")
    if host.startswith("["):
        raise ValueError(f"'{host}': an IPv6 address is written without brackets, the port goes into `port`")
    if ":" in host:
        return _ipv6(host)
    if not _HOST.fullmatch(host):
        raise ValueError(f"'{host}' is not a host name, an address or an alias of ~/.ssh/config")
    return host


def _ipv6(host: str) -> str:
    if host.count(":") == 1:
        raise ValueError(f"'{host}': the port goes into `port`, not after the host")
    if not _is_ipv6(host):
        raise ValueError(f"'{host}' is not an IPv6 address")
    return host


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return _IPV6_CHARACTERS.fullmatch(text) is not None


def split_address(text: str) -> tuple[str | None, str, int | None]:
    """User, host and port of `USER@HOST:PORT` or `ssh://USER@HOST:PORT`, an IPv6 address with a port in brackets.

    Raises ConfigError for a text that can't be taken apart, or can in two ways.
    """
    login, at, address = text.removeprefix("ssh://").rstrip("/").rpartition("@")
    if at and not login:
        raise ConfigError(f"'{text}': no user before the @")
    found = re.fullmatch(r"\[([^\[\]]+)\](?::([0-9]{1,9}))?|([^:\[\]]+):([0-9]{1,9})", address)
    if found is None:
        _refuse_unclear(text, login + at, address)
        return login or None, address, None
    port = found[2] or found[4]
    return login or None, found[1] or found[3], int(port) if port else None


def _refuse_unclear(text: str, login: str, address: str) -> None:
    """Raise ConfigError for an address without a port that may have been meant to have one."""
    host, _, port = address.rpartition(":")
    if "[" in address or "]" in address:
        raise ConfigError(f"'{text}': brackets stand around an IPv6 address, and a port behind them", "[fe80::1]:22")
    if address.endswith(":") and not address.endswith("::"):
        raise ConfigError(f"'{text}': no port after the last colon", f"write {login}{host}, or {login}{host}:22")
    if re.fullmatch("[0-9]{1,5}", port) and _is_ipv6(host):
        other = f", or {login}[{address}] for an address without a port" if _is_ipv6(address) else ""
        raise ConfigError(f"'{text}': is {port} the port?", f"write {login}[{host}]:{port}{other}")
