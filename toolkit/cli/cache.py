"""`edgephi cache`: what edgephi keeps on this machine's disk."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toolkit.jobs.cache import Entry

# These stand in toolkit.jobs.cache too, which completion and help don't import.
KINDS = ("half-made", "bundle", "build", "wheels", "registry", "reference", "blocks", "model")


@click.group()
def cache() -> None:
    """List what edgephi keeps on this machine's disk, and remove what isn't used."""


@cache.command("list")
@options.as_json
def list_(as_json: bool) -> None:
    """List what edgephi keeps on this machine's disk: its size there, and its last use.

    A file with several names counts once. Phi models that the hub's library keeps are listed too.
    """
    from toolkit.cli import render
    from toolkit.config import cache_dir
    from toolkit.jobs.cache import list_cache

    entries = list_cache()
    if as_json:
        render.print_json([entry.as_json() for entry in entries])
        return
    _show(entries)
    total = sum(entry.disk_bytes for entry in entries)
    render.note(f"{cache_dir()} and the hub's cache: {render.size(total)}; edgephi cache prune removes what isn't used")


@cache.command()
@click.option(
    "--keep", type=click.IntRange(0), metavar="N", help="Remove the bundles beside the N that were used last."
)
@click.option(
    "--older-than",
    "older_than_s",
    callback=options.parsed("parse_duration"),
    metavar="TIME",
    help="Remove what wasn't used for so long: 90d, 12h. With --keep, of bundles only those beside the N.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(KINDS),
    help="Remove this kind alone. Repeatable. Models of the hub's cache, which other programs share, go only so.",
)
@click.option("--dry-run", is_flag=True, help="Show what would go; remove nothing.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@options.as_json
def prune(
    keep: int | None, older_than_s: float | None, kinds: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Remove from this machine's disk what isn't used, and always what dead processes left half made.

    Nothing goes that a process uses. All of it can be made again: bundles by `edgephi optimize`, as long as the model
    is at hand. At a terminal you are asked first.
    """
    from toolkit.cli import render
    from toolkit.jobs.cache import choose, list_cache, prune_cache

    chosen = choose(list_cache(), keep=keep, older_than_s=older_than_s, kinds=kinds)
    going = [entry for entry in chosen if not entry.held]
    if going and not (dry_run or yes) and sys.stdin.isatty() and sys.stderr.isatty():
        for entry in going:
            render.note(f"  {entry.kind} {entry.name}, {render.size(entry.disk_bytes)}")
        if not render.confirm(f"remove these {len(going)}?"):
            raise click.Abort
    found = render.follow(prune_cache(chosen, dry_run=dry_run))
    if as_json:
        render.print_json(
            {
                "removed": [entry.as_json() for entry in found.removed],
                "freed_bytes": found.freed_bytes,
                "held": [entry.as_json() for entry in found.held],
                "dry_run": dry_run,
            }
        )
        return
    _show(found.removed)
    verb = "would go" if dry_run else "removed"
    render.line(f"{verb}: {len(found.removed)}; {render.size(found.freed_bytes)} of the disk")


def _show(entries: Sequence[Entry]) -> None:
    from toolkit.cli import render

    now = time.time()
    rows = [
        [
            entry.kind,
            entry.name,
            render.size(entry.disk_bytes),
            "in use" if entry.held else f"{render.duration(max(0, now - entry.used_unix_s))} ago",
        ]
        for entry in entries
    ]
    if rows:
        render.table(["kind", "what it is", "size", "last used"], rows)
