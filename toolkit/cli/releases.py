"""releases, activate, rollback, verify, prune: the installed releases of a target."""

from __future__ import annotations

from dataclasses import asdict

import click

from toolkit.cli import options


@click.command()
@click.argument("target", shell_complete=options.names("targets"))
@options.as_json
def releases(target: str, as_json: bool) -> None:
    """List the releases that are installed on a target."""
    import time

    from toolkit.agent.requests import ListReleases
    from toolkit.cli import render
    from toolkit.device import connect

    with connect(target, render.prompt_secret()) as device:
        answer = device.ask(ListReleases())
    if as_json:
        render.print_json(answer.model_dump(mode="json", exclude_unset=True))
        return
    rows = [
        [
            "active" if entry.active else "",
            entry.release[:12],
            entry.manifest.name,
            render.size(entry.manifest.size_bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.installed_unix_s)),
        ]
        for entry in answer.releases
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
    from toolkit.deploy.releases import activate as activate_service
    from toolkit.device import connect

    with connect(target, render.prompt_secret()) as device:
        activated = render.follow(activate_service(device, release))
    _say_active(target, activated, as_json)


@click.command()
@click.argument("target", shell_complete=options.names("targets"))
@options.as_json
def rollback(target: str, as_json: bool) -> None:
    """Go back to the release that was active before.

    It also works without a network, on the device itself: docs/howto.md has the command.
    """
    from toolkit.agent.requests import RollBack
    from toolkit.cli import render
    from toolkit.device import connect

    with connect(target, render.prompt_secret()) as device:
        release = device.ask(RollBack()).release
    _say_active(target, release, as_json)


def _say_active(target: str, release: str, as_json: bool) -> None:
    from toolkit.cli import render

    if as_json:
        render.print_json({"target": target, "release": release, "active": True})
    else:
        render.line(f"{target}: {release[:12]} is active")


@click.command()
@click.argument("target", shell_complete=options.names("targets"))
@click.option("--repair", is_flag=True, help="Remove damaged releases; a deploy sends the damaged files again.")
@options.as_json
def verify(target: str, repair: bool, as_json: bool) -> None:
    """Hash every file of every release on a target again.

    Exits with 6 when a file is damaged. With --repair damaged releases are removed; if the active one is among them,
    the undamaged release that was active last before it takes its place.
    """
    from toolkit.cli import render
    from toolkit.deploy.releases import verify as verify_service
    from toolkit.device import connect

    with connect(target, render.prompt_secret()) as device:
        found = render.follow(verify_service(device, repair=repair))
    if as_json:
        render.print_json(asdict(found))
    else:
        rows = [
            [
                "active" if checked.release == found.active else "",
                checked.release[:12],
                "DAMAGED" if checked.damaged else "whole",
                ", ".join(checked.damaged),
            ]
            for checked in found.releases
        ]
        render.table(["", "release", "", "damaged files"], rows)
        if not rows:
            render.note(f"{target}: nothing is installed")
    found.enforce()


@click.command()
@click.argument("target", shell_complete=options.names("targets"))
@click.option(
    "--keep",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Number of releases to keep beside the active one: those active before it first, then the newest.",
)
@click.option("--dry-run", is_flag=True, help="Show the releases that would go; remove nothing.")
@options.as_json
def prune(target: str, keep: int, dry_run: bool, as_json: bool) -> None:
    """Remove old releases from a target, with the files and runtimes that only they needed.

    The active release always stays. A power cut in the middle leaves no release without its files.
    """
    from toolkit.cli import render
    from toolkit.deploy.releases import prune as prune_service
    from toolkit.device import connect

    with connect(target, render.prompt_secret()) as device:
        found = render.follow(prune_service(device, keep=keep, dry_run=dry_run))
    if as_json:
        render.print_json(asdict(found))
        return
    names = ", ".join(release[:12] for release in found.removed) or "no release"
    verb = "would go" if dry_run else "removed"
    render.line(
        f"{target}: {verb}: {names}; {render.size(found.freed_bytes)} of files; releases left: {len(found.kept)}"
    )
