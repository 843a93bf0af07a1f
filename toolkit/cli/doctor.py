"""doctor."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.jobs.doctor import Check

COLORS = {"ok": "green", "warn": "yellow", "failed": "red", "skipped": "bright_black"}


@click.command()
@click.argument("target", required=False, shell_complete=options.names("targets"))
@options.as_json
@click.pass_context
def doctor(ctx: click.Context, target: str | None, as_json: bool) -> None:
    """Check this machine, or a target from its file to its active release.

    Each check prints its finding and, where something is wrong, the next step. Without TARGET it checks this machine:
    Python, the packages that quantize, disk, memory, ssh, and every profile, target and recipe file. With TARGET it
    checks the address, host key, login, Python, the device's condition, and that the active release loads.
    Exits with 0 when no check failed, with 3 when the failure is on this machine, with 7 when it is on the device.
    """
    from toolkit.cli import render
    from toolkit.jobs.doctor import examine_host, examine_target, exit_code

    found = []
    for check in examine_host() if target is None else examine_target(target, render.prompt_secret()):
        found.append(check)
        if not as_json:
            _draw(check)
    code = exit_code(target, found)
    if as_json:
        render.print_json({"target": target, "passed": code == 0, "checks": [asdict(check) for check in found]})
    else:
        counts: Counter[str] = Counter(check.state for check in found)
        render.note(f"{target or 'this machine'}: " + ", ".join(f"{counts[state]} {state}" for state in COLORS))
    ctx.exit(code)


def _draw(check: Check) -> None:
    from toolkit.cli import render

    first, *others = check.seen.split("\n")
    render.line(f"{check.state:<8}", COLORS[check.state], f" {check.name:<15} {first}")
    for line in others:
        render.line(f"{'':<25}{line}")
    if check.hint and check.state != "ok":
        render.line(f"{'':<25}{check.hint}", "cyan")
