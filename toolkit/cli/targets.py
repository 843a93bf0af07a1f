"""targets list, show, add, remove, schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options
from toolkit.cli.probe import identified, probe, trust
from toolkit.cli.signers import signers

if TYPE_CHECKING:
    from toolkit.catalog import Target
    from toolkit.catalog.target import BrokenTarget


@click.group(invoke_without_command=True)
@click.pass_context
def targets(ctx: click.Context) -> None:
    """Manage the machines that bundles are pushed to."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


targets.add_command(probe)
targets.add_command(trust)
targets.add_command(signers)


@targets.command("list")
@options.as_json
def list_(as_json: bool = False) -> None:
    """List every target."""
    from toolkit.catalog import list_targets
    from toolkit.catalog.target import BrokenTarget
    from toolkit.cli import render

    found = list_targets()
    for target in found:
        if isinstance(target, BrokenTarget):
            render.warn(target.error.message)
    if as_json:
        render.print_json([_as_json(target) for target in found])
        return
    render.table(("target", "address", "profile", "install root", "tags", "source"), map(_row, found))


@targets.command()
@click.argument("name")
@options.as_json
def show(name: str, as_json: bool) -> None:
    """Show one target."""
    from toolkit.catalog import load_target
    from toolkit.cli import render

    target = load_target(name)
    if as_json:
        render.print_json(_as_json(target))
        return
    fields = target.model_dump(mode="json", exclude_none=True)
    rows = [(key, ", ".join(value) if isinstance(value, list) else str(value)) for key, value in fields.items()]
    render.table(("key", "value"), [("file", str(target.path)), *rows], target.name)


@targets.command()
@click.argument("name")
@click.argument("host")
@click.option("--profile", help="Device class, from `edgephi profiles list`.  [default: found by connecting]")
@click.option("--user", help="Login name; also as USER@HOST.")
@click.option("--port", type=int, help="Port of the machine's sshd.")
@click.option("--install-root", help="Folder on the machine that edgephi owns.  [default: ~/.edgephi]")
@click.option("--python", help="Its Python, or `py -3.12` on Windows.  [default: python3; on Windows it is found]")
@click.option("--identity-file", type=click.Path(path_type=Path), help="Private key file on this machine.")
@click.option("--known-hosts", type=click.Path(path_type=Path), help="known_hosts file to use instead of yours.")
@click.option(
    "--allowed-signers",
    type=click.Path(path_type=Path),
    help="Take only bundles that somebody in this file has signed.",
)
@click.option("--tag", "tags", multiple=True, help="Group that the target belongs to. Repeatable.")
@click.option("--force", is_flag=True, help="Replace a target of this name.")
@options.as_json
def add(
    name: str,
    host: str,
    user: str | None,
    identity_file: Path | None,
    known_hosts: Path | None,
    allowed_signers: Path | None,
    force: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Write a target file for a machine that SSH reaches.

    HOST is a host name, an address or an alias of ~/.ssh/config, with or without USER@ and :PORT (for IPv6 as
    [fe80::1%eth0]:2222). Without --profile, edgephi connects to the machine, probes it and takes the profile that
    suits it best; with --profile it doesn't connect. The file goes into your configuration folder; a file of the same
    name in ./targets would take precedence.
    """
    from toolkit.catalog import load_profile
    from toolkit.catalog.target import parse_target, save_target, split_address
    from toolkit.cli import render
    from toolkit.config import config_dir

    login, address, port = split_address(host)
    if login and user is not None:
        raise click.UsageError("give the user once: USER@HOST or --user")
    if port and fields["port"] is not None:
        raise click.UsageError("give the port once: HOST:PORT or --port")
    fields["port"] = port or fields["port"]
    files = {
        "identity_file": _anchored(identity_file),
        "known_hosts": _anchored(known_hosts),
        "allowed_signers": _anchored(allowed_signers or (_demanded_by(name) if force else None)),
    }
    table = {"host": address, "user": login or user} | fields | files
    given = {key: value for key, value in table.items() if value not in (None, ())}
    where = f"target '{name}'"
    # Before any connection: wrong fields, an unknown profile and a taken name are refused.
    target = parse_target(name, {"profile": "local"} | given, where=where)
    if "profile" in given:
        load_profile(target.profile)
    if not force:
        _refuse_taken(name)
    match = None
    if "profile" not in given:
        match = identified(target)
        target = target.model_copy(update={"profile": match.profile.name})
    folder = config_dir() / "targets"
    path = save_target(target, folder, replace=force)
    _warn_if_hidden(name, path)
    if as_json:
        reasons = {} if match is None else {"profile_reasons": list(match.reasons)}
        render.print_json(_as_json(target.model_copy(update={"path": path})) | reasons)
    else:
        render.line(f"{name}: written to {path}")


@targets.command()
@click.argument("name")
@options.as_json
def remove(name: str, as_json: bool) -> None:
    """Delete a target's file; the machine itself isn't touched."""
    from toolkit.catalog.target import remove_target
    from toolkit.cli import render

    path = remove_target(name)
    if as_json:
        render.print_json({"name": name, "path": str(path), "removed": True})
    else:
        render.line(f"{name}: removed {path}")


@targets.command()
def schema() -> None:
    """Print the JSON Schema of target files, for editors."""
    from toolkit.catalog.target import target_json_schema
    from toolkit.cli import render

    render.print_json(target_json_schema())


def _anchored(path: Path | None) -> str | None:
    """A path that holds in every working folder: absolute, or with its `~`, which also holds for other homes."""
    if path is None:
        return None
    return str(path) if str(path).startswith("~") else str(path.absolute())


def _refuse_taken(name: str) -> None:
    from toolkit.catalog.toml import find_toml
    from toolkit.config import shown
    from toolkit.errors import ConfigError

    taken = find_toml("targets").get(name)
    if taken is not None:
        raise ConfigError(f"target '{name}' exists already: {shown(taken)}", "--force replaces it")


def _demanded_by(name: str) -> Path | None:
    """The signers' file of the target that is replaced, so that a replacement doesn't drop its demand by chance."""
    from toolkit.catalog import load_target
    from toolkit.catalog.toml import find_toml

    return load_target(name).signers_file if name in find_toml("targets") else None


def _warn_if_hidden(name: str, path: Path) -> None:
    from toolkit.catalog.toml import find_toml
    from toolkit.cli import render
    from toolkit.config import shown

    strongest = find_toml("targets")[name]
    if strongest != path:
        render.warn(f"{shown(strongest)} is read instead of {shown(path)}; delete it to use the new one")


def _row(target: Target | BrokenTarget) -> list[str]:
    from toolkit.catalog.target import BrokenTarget

    if isinstance(target, BrokenTarget):
        return [target.name, "broken", "–", "–", "", _source(target.path)]
    return [
        target.name,
        _address(target),
        target.profile,
        target.install_root,
        ", ".join(target.tags),
        _source(target.path),
    ]


def _address(target: Target) -> str:
    if target.host is None:
        return "this machine"
    host = f"[{target.host}]" if ":" in target.host and target.port else target.host
    return (f"{target.user}@" if target.user else "") + host + (f":{target.port}" if target.port else "")


def _as_json(target: Target | BrokenTarget) -> dict[str, Any]:
    from toolkit.catalog.target import BrokenTarget

    known = {"name": target.name, "path": str(target.path), "source": _source(target.path)}
    if isinstance(target, BrokenTarget):
        return known | {"error": target.error.message}
    return known | target.model_dump(mode="json")


def _source(path: Path | None) -> str:
    from toolkit.catalog.toml import is_shipped

    return "shipped" if path is not None and is_shipped(path, "targets") else "user"
