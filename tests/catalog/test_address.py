"""toolkit.catalog.address: addresses as people write them, and names that ssh or a shell would misread."""

from __future__ import annotations

import pytest

from toolkit.catalog.address import split_address, user_name
from toolkit.errors import ConfigError


@pytest.mark.parametrize(
    "name", ["vault#pi", "DOMAIN\\user", "user@domain", "a+b", "ünï", "host$", "w@t:SSH:u", "a%b=c,d"]
)
def test_names_that_servers_allow(name: str) -> None:
    assert user_name(name) == name


@pytest.mark.parametrize(
    ("name", "character"),
    [
        ("a b", " "),
        ("a;b", ";"),
        ("$(id)", "$"),
        ("a$b", "$"),
        ("a*", "*"),
        ("-l", "-"),
        ("#pi", "#"),
        ("~root", "~"),
        ("a\\", "\\"),
        ("a\x1bb", "\x1b"),
        ("a\u202eb", "\u202e"),
        ("a\nb", "\n"),
    ],
)
def test_names_that_a_shell_or_ssh_would_misread(name: str, character: str) -> None:
    with pytest.raises(ValueError, match="is not a user name") as caught:
        user_name(name)
    words = f"{name!r} is not a user name: ssh, or a ProxyCommand's shell, would misread {character!r}"
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("pi@[::1]:5223", ("pi", "::1", 5223)),
        ("[::1]", (None, "::1", None)),
        ("::1", (None, "::1", None)),
        ("fe80::", (None, "fe80::", None)),
        ("fe80::1%eth0", (None, "fe80::1%eth0", None)),
        ("2001:db8:0:0:0:0:0:1", (None, "2001:db8:0:0:0:0:0:1", None)),
        ("DOMAIN\\user@h:22", ("DOMAIN\\user", "h", 22)),
        ("h:0", (None, "h", 0)),
    ],
)
def test_addresses(text: str, parts: tuple[str | None, str, int | None]) -> None:
    assert split_address(text) == parts


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("pi@::1:5223", "is 5223 the port?", "write pi@[::1]:5223, or pi@[::1:5223] for an address without a port"),
        ("::1:22", "is 22 the port?", "write [::1]:22, or [::1:22] for an address without a port"),
        ("fe80::1%eth0:22", "is 22 the port?", "write [fe80::1%eth0]:22"),
        ("pi@h:", "no port after the last colon", "write pi@h, or pi@h:22"),
        ("[::1]:", "brackets stand around an IPv6 address, and a port behind them", "[fe80::1]:22"),
        ("[::1", "brackets stand around an IPv6 address, and a port behind them", "[fe80::1]:22"),
        ("@h", "no user before the @", None),
    ],
)
def test_addresses_with_two_meanings_or_none(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        split_address(text)
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == (f"'{text}': {message}", hint, 3)
