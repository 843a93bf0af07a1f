"""The machines on the way to a target: jump hosts, each with its own host key, and at last the target."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from toolkit.device.ssh.config import SshOptions, SshTarget, ask_ssh_g, default_values, ssh_options
from toolkit.device.ssh.link import Link, NoWayThrough, connected, known_key_types, verify_host_key
from toolkit.device.ssh.words import host_key_refusal
from toolkit.errors import ConfigError

# A configuration may send a hop through itself.
_MOST_HOPS = 8


@dataclass(frozen=True)
class Hop:
    """A jump host as a target; `name` says in messages to which target it leads."""

    name: str
    host: str | None
    user: str | None = None
    port: int | None = None
    identity_file: Path | None = None
    known_hosts: Path | None = None
    os: str | None = None


@contextmanager
def connected_by_hops(target: SshTarget, options: SshOptions, key_types: Sequence[str] = ()) -> Iterator[Link]:
    """`connected`, which also explains a way that doesn't lead through.

    Raises, besides its errors, HostKeyUnknown, HostKeyChanged and HostUnreachable about the first jump host at fault.
    """
    try:
        with connected(target, options, key_types) as link:
            yield link
    except NoWayThrough as exc:
        for hop, its_options in jump_hosts(target, options):
            check(hop, its_options, target.name)
        raise (host_key_refusal(f"{exc.where}: on the way", exc.said) or exc) from exc


def check(hop: SshTarget, options: SshOptions, name: str) -> None:
    """Connect to a machine for its host key alone; raise what is wrong with the way there or with the key."""
    with connected(hop, options, known_key_types(options)) as link:
        verify_host_key(link, name)
        link.close()


def jump_hosts(target: SshTarget, options: SshOptions) -> list[tuple[Hop, SshOptions]]:
    """The jump hosts of a target's ProxyJump, or of a ProxyCommand that is an ssh, the nearest first.

    The list is empty for other commands, and where ssh doesn't tell.
    """
    found: list[SshOptions] = []
    hosts: list[str] = []
    try:
        while len(found) < _MOST_HOPS and (words := _ssh_words(options.proxy_command)):
            values = ask_ssh_g([words[0], "-G", *words[1:]], f"target '{target.name}': the way there")
            host = next(iter(values.get("host", ())), None) or values.get("hostname", [""])[0]
            options = ssh_options(host, Hop(target.name, host), None, values, default_values(words[0]), _file(words))
            found.insert(0, options)
            hosts.insert(0, host)
    except ConfigError:
        return []
    count = len(found)
    names = [
        f"{target.name}: jump host {f'{number} of {count}, ' if count > 1 else ''}{host}"
        for number, host in enumerate(hosts, 1)
    ]
    return [(Hop(name, host), its) for name, host, its in zip(names, hosts, found, strict=True)]


def _ssh_words(command: str | None) -> list[str]:
    """The words of a command that is an ssh; empty for another one."""
    try:
        words = shlex.split(command or "")
    except ValueError:
        return []
    words = words[1:] if words[:1] == ["exec"] else words
    program = shutil.which(words[0]) if words and PurePath(words[0]).stem == "ssh" else None
    return [program, *words[1:]] if program else []


def _file(words: Sequence[str]) -> str | None:
    """The configuration file that an ssh is given, and gives to the ssh of a hop before it."""
    return words[words.index("-F") + 1] if "-F" in words[:-1] else None


def machines(target: SshTarget, options: SshOptions) -> list[tuple[SshTarget, SshOptions]]:
    """The jump hosts, the nearest first, and at last the target itself."""
    return [*jump_hosts(target, options), (target, options)]
