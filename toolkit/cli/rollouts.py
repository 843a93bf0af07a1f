"""Deploying to several targets, and the records of that: rollouts list, rollouts show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.bundle import Bundle
    from toolkit.catalog import Target
    from toolkit.deploy import Delivery
    from toolkit.jobs.rollout import DeviceRecord, Rollout, RolloutOptions
    from toolkit.jobs.rollout.record import State

STATES: tuple[State, ...] = ("done", "failed", "pending")


def roll_out(
    bundle: Bundle,
    words: Sequence[str],
    delivery: Delivery,
    link: options.Link,
    *,
    as_json: bool,
    dry_run: bool,
    fresh: bool,
    **waves: Any,
) -> None:
    """Deploy a bundle to the targets that names and `@tags` mean, and draw the record.

    `waves` are the fields of RolloutOptions that `delivery` lacks. Raises RolloutFailed when devices failed.
    """
    from toolkit.catalog.target import over, select_targets
    from toolkit.cli import render
    from toolkit.jobs.rollout import RolloutOptions, roll_out as roll_out_service

    targets = [over(target, link.client) for target in select_targets(words)]
    # The options are part of the rollout's identity, which must be the same from every working folder.
    chosen = RolloutOptions(
        offline=delivery.offline,
        wheels=delivery.wheels and delivery.wheels.absolute(),
        force=delivery.force,
        source=delivery.source,
        **waves,
    )
    if dry_run:
        _show_plan(bundle, targets, chosen, fresh=fresh, as_json=as_json)
        return
    service = roll_out_service(bundle, targets, chosen, fresh=fresh, limit_bytes_per_s=link.limit_bytes_per_s)
    rollout = render.follow(service)
    if as_json:
        render.print_json(rollout.model_dump(mode="json"))
    else:
        _show(rollout)
    _enforce(rollout)
    render.note(_summary(rollout))


def _enforce(rollout: Rollout) -> None:
    from toolkit.errors import RolloutFailed
    from toolkit.jobs.rollout.record import rollout_exit_code

    if code := rollout_exit_code(rollout.devices):
        short = _short(rollout.id)
        hint = f"the same command goes on with those that aren't done; edgephi rollouts show {short} has every error"
        raise RolloutFailed(_summary(rollout), hint, code)


def _show_plan(
    bundle: Bundle, targets: Sequence[Target], chosen: RolloutOptions, *, fresh: bool, as_json: bool
) -> None:
    from toolkit.cli import render
    from toolkit.jobs.rollout.record import new_rollout, recall

    rollout = new_rollout(bundle, [target.name for target in targets], chosen)
    if not fresh:
        rollout = recall(rollout)
    if as_json:
        render.print_json({"dry_run": True} | rollout.model_dump(mode="json"))
        return
    profiles = {target.name: target.profile for target in targets}
    rows = [[_wave(device), device.target, profiles[device.target], device.state] for device in rollout.devices]
    render.table(["wave", "target", "profile", "state"], rows, title=rollout.bundle_name)


def _show(rollout: Rollout) -> None:
    from toolkit.cli import render

    rows = [
        [
            device.target,
            _wave(device),
            device.state,
            render.figure(device.seconds) if device.seconds else "–",
            render.size(device.sent_bytes) if device.seconds else "–",
            _active(device),
            (device.error or "").split("\n")[0],
        ]
        for device in rollout.devices
    ]
    columns = ["target", "wave", "state", "s", "sent", "active there", "error"]
    render.table(columns, rows, title=f"{rollout.bundle_name} ({rollout.bundle_id[:12]})")


def _wave(device: DeviceRecord) -> str:
    return f"{device.wave} canary" if device.canary else str(device.wave)


def _active(device: DeviceRecord) -> str:
    if device.restored in ("rolled back", "deactivated"):
        return f"{device.active[:12] if device.active else 'nothing'} ({device.restored})"
    if device.restored == "unchanged" or device.state == "done":
        return device.active[:12] if device.active else "nothing"
    return "unknown" if device.restored else "–"


def _summary(rollout: Rollout) -> str:
    counts = {state: len(rollout.in_state(state)) for state in STATES}
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f"rollout {_short(rollout.id)}: {text}" + (f"; stopped: {rollout.stopped}" if rollout.stopped else "")


def _short(rollout_id: str) -> str:
    return rollout_id[:8]


@click.group(invoke_without_command=True)
@click.pass_context
def rollouts(ctx: click.Context) -> None:
    """List and show the results of deploying to several targets."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@rollouts.command("list")
@options.as_json
def list_(as_json: bool = False) -> None:
    """List every kept rollout, the newest first."""
    from toolkit.cli import render
    from toolkit.jobs.rollout.record import list_rollouts

    found = list_rollouts()
    if as_json:
        render.print_json([rollout.model_dump(mode="json") for rollout in found])
        return
    rows = [
        [
            _short(rollout.id),
            rollout.created_utc,
            rollout.bundle_name,
            *(str(len(rollout.in_state(state))) for state in STATES),
            rollout.stopped or "",
        ]
        for rollout in found
    ]
    render.table(["rollout", "begun", "bundle", *STATES, "stopped"], rows)
    if not rows:
        render.note("no rollout yet; edgephi deploy BUNDLE TARGET TARGET begins one")


@rollouts.command()
@click.argument("rollout", metavar="ID")
@options.as_json
def show(rollout: str, as_json: bool) -> None:
    """Show the result on each device of a rollout.

    ID is the rollout's id or its first characters.
    """
    from toolkit.cli import render
    from toolkit.jobs.rollout.record import find_rollout

    found = find_rollout(rollout)
    if as_json:
        render.print_json(found.model_dump(mode="json"))
        return
    _show(found)
    render.note(_summary(found))
    for device in found.in_state("failed"):
        render.note(f"  {device.target}: {device.error}")
        if device.hint:
            render.note(f"    {device.hint}")
