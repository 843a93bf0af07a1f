"""deploy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from toolkit.cli import options
from toolkit.units import memory_text

if TYPE_CHECKING:
    from toolkit.bundle import Bundle
    from toolkit.deploy import Delivery
    from toolkit.jobs import GateVerdict

# The text of each limit's figures, and the side of the bound on which they have to stay.
GATE_FIGURES: dict[str, tuple[Callable[[float], str], str]] = {
    "max_memory": (memory_text, "≤"),
    "max_perplexity_increase_percent": (lambda value: f"{value:.2f} %", "≤"),
    "min_decode_tps": (lambda value: f"{value:.4g} tok/s", "≥"),
    "min_token_match": (lambda value: f"{value:.3f}", "≥"),
}


@click.command()
@click.argument("bundle")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...", shell_complete=options.several_targets)
@options.offline
@options.limit_rate
@options.transport
@click.option(
    "--gate", is_flag=True, help="Measure the bundle there first; it becomes active only within the profile's limits."
)
@click.option("--force", is_flag=True, help="Push even if the device has less memory than the plan needs.")
@options.source
@options.rollout
@options.as_json
@click.pass_context
@options.gathered(delivery=options.delivery, link=options.Link, pull=options.Pull)
def deploy(
    ctx: click.Context,
    /,
    bundle: str,
    targets: tuple[str, ...],
    delivery: Delivery,
    link: options.Link,
    pull: options.Pull,
    gate: bool,
    as_json: bool,
    **rollout: Any,
) -> None:
    """Push a bundle to targets, verify it there and activate it.

    BUNDLE is a folder, an id (or its first characters) or a name from `edgephi bundle list`. Files that the
    target already has aren't sent again; the release becomes active only after its hashes agree and it has
    generated tokens. With --gate it must also keep within the profile's [limits]; otherwise the earlier release
    stays active, and the command exits with 10.

    BUNDLE may also be oci://HOST/REPOSITORY[:TAG] in a registry: then, or with --from, the devices pull the files
    themselves, from mirrors first, and check each file against its hash. Only manifests pass through this machine.

    TARGET is a name, `@tag` for every target with that tag, or `@all`. Several targets, or a tag, make a rollout:
    canaries first, then waves of --parallel devices at once. A device on which the bundle doesn't load and generate
    after activation goes back to the release that was active there. The next wave starts only when no canary has
    failed, and not more than --max-failures devices have. The same command again goes on with the devices that failed
    or weren't tried.
    """
    from toolkit.catalog.target import is_tag
    from toolkit.cli.rollouts import roll_out
    from toolkit.cli.sources import find_with_source

    found, source = find_with_source(bundle, pull)
    delivery = replace(delivery, source=source)
    if len(targets) > 1 or is_tag(targets[0]):
        roll_out(found, targets, delivery, link, gate=gate, as_json=as_json, **rollout)
        return
    _refuse_given(ctx, rollout)
    _deploy_to_one(found, targets[0], delivery, link, gate=gate, as_json=as_json)


def _refuse_given(ctx: click.Context, names: Iterable[str]) -> None:
    for name in names:
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} is for a rollout: several targets, or a @tag")


def _deploy_to_one(
    found: Bundle,
    target: str,
    delivery: Delivery,
    link: options.Link,
    *,
    gate: bool,
    as_json: bool,
) -> None:
    from toolkit.catalog import load_target
    from toolkit.catalog.target import over
    from toolkit.cli import render
    from toolkit.deploy import deploy as deploy_service
    from toolkit.device import connect
    from toolkit.jobs import deploy_gated

    reached = over(load_target(target), link.client)
    with connect(reached, render.prompt_secret(), limit_bytes_per_s=link.limit_bytes_per_s) as device:
        if gate:
            verdict = render.follow(deploy_gated(found, device, delivery))
            _show_verdict(verdict, as_json=as_json)
            verdict.enforce()
            return
        release = render.follow(deploy_service(found, device, delivery))
    if as_json:
        render.print_json(
            {"target": target, "release": release.bundle_id, "runtime": release.runtime.lock, "active": True}
        )
    else:
        render.line(f"{target}: {found.manifest.name} ({release.bundle_id[:12]}) is active")


def _show_verdict(verdict: GateVerdict, *, as_json: bool) -> None:
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
        render.line(f"{verdict.target}: {verdict.bundle.manifest.name} ({verdict.bundle.id[:12]}) is active")
