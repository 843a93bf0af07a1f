"""deploy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.gate import Verdict

# How each limit's figures are written, and on which side of the bound they have to stay.
GATE_FIGURES: dict[str, tuple[Callable[[float], str], str]] = {
    "max_memory": (lambda value: f"{value / 1e6:,.1f} MB", "≤"),
    "max_perplexity_increase_percent": (lambda value: f"{value:.2f} %", "≤"),
    "min_decode_tps": (lambda value: f"{value:.4g} tok/s", "≥"),
    "min_token_match": (lambda value: f"{value:.3f}", "≥"),
}


@click.command()
@click.argument("bundle")
@click.argument("target", shell_complete=options.names("targets"))
@options.offline
@options.limit_rate
@click.option(
    "--gate", is_flag=True, help="Measure it there first; it becomes active only within the profile's limits."
)
@click.option("--force", is_flag=True, help="Push it even if the device hasn't the memory it was planned to need.")
@options.as_json
def deploy(
    bundle: str,
    target: str,
    offline: bool,
    wheels: Path | None,
    limit_bytes_per_s: float | None,
    gate: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Push a bundle to a target, verify it there and activate it.

    BUNDLE is a folder, an id (or its first characters) or a name from `edgephi bundle list`. Files that the
    target already has aren't sent again; the release becomes active only after its hashes agree and it has
    generated tokens. With --gate it must also hold the profile's [limits]; one that doesn't leaves the earlier release
    active, and exits with 10.
    """
    from toolkit.bundle import find_bundle
    from toolkit.cli import render
    from toolkit.deploy import deploy as deploy_service
    from toolkit.device import connect
    from toolkit.gate import deploy_gated

    found = find_bundle(bundle)
    with connect(target, render.prompt_secret(), limit_bytes_per_s=limit_bytes_per_s) as device:
        if gate:
            verdict = render.follow(deploy_gated(found, device, offline=offline, wheels=wheels, force=force))
            _show_verdict(verdict, as_json=as_json)
            verdict.enforce()
            return
        release = render.follow(deploy_service(found, device, offline=offline, wheels=wheels, force=force))
    if as_json:
        render.print_json(
            {"target": target, "release": release.bundle_id, "runtime": release.runtime.lock, "active": True}
        )
    else:
        click.echo(f"{target}: {found.manifest.name} ({release.bundle_id[:12]}) is active")


def _show_verdict(verdict: Verdict, *, as_json: bool) -> None:
    from toolkit.cli import render

    if as_json:
        render.print_json(verdict.as_json())
        return
    rows = []
    for check in verdict.checks:
        text, relation = GATE_FIGURES[check.limit]
        interval = f"{text(check.low)} … {text(check.high)}" if check.low is not None and check.high is not None else ""
        measured = "–" if check.measured is None else text(check.measured)
        outcome = {True: "ok", False: "FAILED", None: "not comparable"}[check.ok]
        rows.append([check.limit, f"{relation} {text(check.bound)}", measured, interval, outcome, check.note])
    render.table(["limit", "bound", "measured", "95 %", "", ""], rows)
    if verdict.passed:
        click.echo(f"{verdict.target}: {verdict.bundle.manifest.name} ({verdict.bundle.id[:12]}) is active")
