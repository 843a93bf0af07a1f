"""targets probe, targets trust: the two that talk to the machine itself."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options


@click.command()
@click.argument("name", shell_complete=options.names("targets"))
@options.as_json
def probe(name: str, as_json: bool) -> None:
    """Connect to a target and tell what it is.

    Shows the board, CPU, memory, free disk, Python and accelerators, and whether they fit the target's
    profile.
    """
    from toolkit.cli import render
    from toolkit.device import check_profile, connect

    with connect(name, render.prompt_secret()) as device:
        facts = device.ask("probe")
        if as_json:
            render.print_json(facts)
        else:
            render.table(["fact", "value"], [[key, _value(key, value)] for key, value in facts.items()], title=name)
        check_profile(device, facts)
        render.note(f"{name} fits profile {device.profile.name}; the connection and the agent work")


@click.command()
@click.argument("name", shell_complete=options.names("targets"))
@click.argument("fingerprint", metavar="SHA256:...")
def trust(name: str, fingerprint: str) -> None:
    """Accept a target's host key, given its fingerprint.

    Read the fingerprint on the device itself (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`): the key
    goes into known_hosts only if the server at that address really has it.
    """
    from toolkit.errors import ConfigError
    from toolkit.targets import load_target
    from toolkit.transport.ssh import trust_host_key

    target = load_target(name)
    if target.transport != "ssh":
        raise ConfigError(f"{name} is reached without SSH: there is no host key to trust")
    click.echo(f"{name}: the key is now in {trust_host_key(target, fingerprint)}")


def _value(key: str, value: Any) -> str:
    from toolkit.cli import render

    if key.endswith("_bytes"):
        return render.size(value)
    if value in (None, [], {}):
        return "–"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) if key == "accelerators" else " ".join(map(str, value))
    if isinstance(value, dict):
        if all(isinstance(item, bool) for item in value.values()):
            return " ".join(name for name, on in value.items() if on) or "none"
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)
