"""targets probe, targets trust, and the probe of targets add: the commands that connect to the machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from pydantic import JsonValue

    from toolkit.catalog import Target
    from toolkit.catalog.recognize import Match


@click.command()
@click.argument("name", shell_complete=options.names("targets"))
@options.as_json
def probe(name: str, as_json: bool) -> None:
    """Connect to a target and show the facts about it.

    Shows the board, CPU, memory, free disk, Python and accelerators, and whether they fit the target's
    profile.
    """
    from toolkit.agent.requests import TakeProbe
    from toolkit.cli import render
    from toolkit.device import check_profile, connect

    with connect(name, render.prompt_secret()) as device:
        facts = device.ask(TakeProbe())
        told = facts.as_json()
        if as_json:
            render.print_json(told)
        else:
            render.table(["fact", "value"], [[key, _value(key, value)] for key, value in told.items()], title=name)
        check_profile(device, facts)
        render.note(f"{name} fits profile {device.profile.name}; the connection and the agent work")


@click.command()
@click.argument("name", shell_complete=options.names("targets"))
@click.argument("fingerprint", metavar="SHA256:...")
@click.option("--host", help="Address of the machine, when there is no target of that name yet.")
@click.option("--port", type=int, help="With --host: port of the machine's sshd.")
@click.option("--known-hosts", type=click.Path(path_type=Path), help="With --host: known_hosts file instead of yours.")
def trust(name: str, fingerprint: str, host: str | None, port: int | None, known_hosts: Path | None) -> None:
    """Accept a target's host key, given its fingerprint.

    Read the fingerprint on the device itself (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`): the key
    goes into known_hosts only if the server at that address really has it.
    """
    from toolkit.catalog import load_target
    from toolkit.catalog.target import parse_target
    from toolkit.cli import render
    from toolkit.device.ssh.client import trust_host_key
    from toolkit.errors import ConfigError

    if host is None and (port is not None or known_hosts is not None):
        raise click.UsageError("--port and --known-hosts go with --host; a target's own stand in its file")
    if host is None:
        target = load_target(name)
    else:
        fields = {"host": host, "port": port, "known_hosts": known_hosts, "profile": "local"}
        given = {key: value for key, value in fields.items() if value is not None}
        target = parse_target(name, given, where=f"target '{name}'")
    if target.transport == "local":
        raise ConfigError(f"{name} is reached without SSH: there is no host key to trust")
    render.line(f"{name}: the key is now in {trust_host_key(target, fingerprint)}")


def identified(target: Target) -> Match:
    """Find the profile that suits a target without a file yet; print the choice and its reasons on stderr.

    Raises the errors of connecting; a hint to trust the host key gives a command that works without the file.
    """
    from toolkit.cli import render
    from toolkit.device import identify
    from toolkit.errors import HostKeyChanged, HostKeyUnknown

    try:
        match = identify(target, render.prompt_secret())
    except (HostKeyUnknown, HostKeyChanged) as exc:
        raise type(exc)(exc.message, _with_address(exc.hint or "", target)) from exc
    render.note(f"{target.name} gets profile {match.profile.name}: {'; '.join(match.reasons)}")
    render.note(f"edgephi doctor {target.name} checks the rest; --profile takes another")
    return match


def _with_address(hint: str, target: Target) -> str:
    options = {"--host": target.host, "--port": target.port, "--known-hosts": target.known_hosts}
    words = [f" {name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return re.sub(r"targets trust \S+ SHA256:[A-Za-z0-9+/]+", lambda found: found[0] + "".join(words), hint)


def _value(key: str, value: JsonValue) -> str:
    from toolkit.cli import render

    if key.endswith("_bytes") and isinstance(value, int | float):
        return render.memory(value) if key.startswith(("ram_", "mem_")) else render.size(value)
    if value in (None, [], {}):
        return "–"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) if key == "accelerators" else " ".join(map(str, value))
    if isinstance(value, dict):
        if all(isinstance(item, bool) for item in value.values()):
            return " ".join(name for name, on in value.items() if on) or "none"
        return ", ".join(f"{name} {'–' if item is None else item}" for name, item in value.items())
    return str(value)
