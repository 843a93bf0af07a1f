"""deploy, releases, activate, rollback."""

from __future__ import annotations

from pathlib import Path

import click

from toolkit.cli import options


@click.command()
@click.argument("bundle")
@click.argument("target", shell_complete=options.names("targets"))
@options.offline
@options.as_json
def deploy(bundle: str, target: str, offline: bool, wheels: Path | None, as_json: bool) -> None:
    """Push a bundle to a target, verify it there and activate it.

    BUNDLE is a folder, an id (or its first characters) or a name from `edgephi bundle list`. Files that the
    target already has aren't sent again; the release becomes active only after its hashes agree and it has
    generated tokens.
    """
    from toolkit.bundle import find_bundle
    from toolkit.cli import render
    from toolkit.deploy import deploy as deploy_service
    from toolkit.device import connect

    found = find_bundle(bundle)
    with connect(target, render.prompt_secret()) as device:
        release = render.follow(deploy_service(found, device, offline=offline, wheels=wheels))
    if as_json:
        render.print_json(
            {"target": target, "release": release.bundle_id, "runtime": release.runtime.lock, "active": True}
        )
    else:
        click.echo(f"{target}: {found.manifest.name} ({release.bundle_id[:12]}) is active")


@click.command()
@click.argument("target", shell_complete=options.names("targets"))
@options.as_json
def releases(target: str, as_json: bool) -> None:
    """List what is installed on a target."""
    import time

    from toolkit.cli import render
    from toolkit.device import connect

    with connect(target, render.prompt_secret()) as device:
        answer = device.ask("releases")
    if as_json:
        render.print_json(answer)
        return
    rows = [
        [
            "active" if entry["active"] else "",
            entry["release"][:12],
            entry["manifest"]["name"],
            render.size(sum(artifact["size_bytes"] for artifact in entry["manifest"]["artifacts"])),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["installed_unix_s"])),
        ]
        for entry in answer["releases"]
    ]
    render.table(["", "release", "name", "size", "installed"], rows)
    if not rows:
        render.note(f"{target}: nothing is installed; edgephi deploy BUNDLE {target}")


@click.command()
@click.argument("target", shell_complete=options.names("targets"))
@click.argument("release")
@options.as_json
def activate(target: str, release: str, as_json: bool) -> None:
    """Make an installed release the active one.

    RELEASE is an id, its first characters, or a name that `edgephi releases` shows.
    """
    from toolkit.cli import render
    from toolkit.deploy import activate as activate_service
    from toolkit.device import connect

    with connect(target, render.prompt_secret()) as device:
        activated = render.follow(activate_service(device, release))
    _say_active(target, activated, as_json)


@click.command()
@click.argument("target", shell_complete=options.names("targets"))
@options.as_json
def rollback(target: str, as_json: bool) -> None:
    """Go back to the release that was active before.

    Works without a network too, on the device itself: the agent's own text says how.
    """
    from toolkit.cli import render
    from toolkit.device import connect

    with connect(target, render.prompt_secret()) as device:
        answer = device.ask("rollback")
    _say_active(target, answer["release"], as_json)


def _say_active(target: str, release: str, as_json: bool) -> None:
    from toolkit.cli import render

    if as_json:
        render.print_json({"target": target, "release": release, "active": True})
    else:
        click.echo(f"{target}: {release[:12]} is active")
