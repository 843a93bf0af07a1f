"""The whole loop: plan, optimize, deploy, bench; one row for every target and recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.bench import bench, with_figures
from toolkit.catalog import Target, Workload, load_profile, load_recipe
from toolkit.catalog.recipe import check_calibration
from toolkit.deploy import PLAIN, Delivery, check_here, deploy, prepare
from toolkit.device import PromptSecret, connect
from toolkit.errors import ToolkitError
from toolkit.events import Service, Step, Warning_
from toolkit.metrics import Report
from toolkit.optimize import AS_PLANNED, BuildOptions, BuildRequest, optimize


@dataclass(frozen=True)
class LoopRow:
    """The outcome for one target and recipe: a report, or the error that ended the row."""

    target: str
    recipe: str
    report: Report | None = None
    error: ToolkitError | None = None


@dataclass(frozen=True)
class LoopOptions:
    """The options that hold for every row of a run."""

    workload: Workload
    build: BuildOptions = AS_PLANNED
    delivery: Delivery = PLAIN
    fresh: bool = False
    evaluate: bool = False
    prompt_secret: PromptSecret | None = None
    limit_bytes_per_s: float | None = None


def run(model: str, targets: Sequence[Target], recipes: Sequence[str], options: LoopOptions) -> Service[list[LoopRow]]:
    """Run the loop for every target and recipe; without recipes, each profile's default one.

    A row that fails doesn't end the others: its error stands in the row. Targets are reached and their runtimes
    provisioned before anything is built, so that a board that is off is known at once and not after the build.
    Calibration text goes to the recipes that use such text; if none of them does, ConfigError is raised.
    """
    check_calibration([load_recipe(name) for name in recipes], options.build.calibration)
    wanted: dict[str, Sequence[str]] = {}
    failed: dict[str, ToolkitError] = {}
    for target in targets:
        try:
            with connect(target, options.prompt_secret, limit_bytes_per_s=options.limit_bytes_per_s) as device:
                yield from prepare(device, options.delivery)
                wanted[target.name] = recipes or [device.profile.defaults.recipe]
        except ToolkitError as exc:
            failed[target.name] = exc
            yield Warning_(exc.message)
    rows: list[LoopRow] = []
    for target in targets:
        if target.name in failed:
            rows += [LoopRow(target.name, recipe, error=failed[target.name]) for recipe in recipes or ["–"]]
        for recipe in wanted.get(target.name, ()):
            rows.append((yield from _one(model, target, recipe, options)))
    return rows


def _one(model: str, target: Target, recipe: str, options: LoopOptions) -> Service[LoopRow]:
    try:
        report = yield from _loop(model, target, recipe, options)
        return LoopRow(target.name, recipe, report=report)
    except ToolkitError as exc:
        yield Warning_(exc.message)
        return LoopRow(target.name, recipe, error=exc)


def _loop(model: str, target: Target, recipe: str, options: LoopOptions) -> Service[Report]:
    profile = load_profile(target.profile)
    yield Step(f"{model} with {recipe} for {profile.name}")
    chosen = load_recipe(recipe)
    how = options.build.suiting(chosen)
    bundle = yield from optimize(BuildRequest(model, chosen, profile, how), check=check_here)
    if options.evaluate:
        bundle = yield from with_figures(bundle, model, how)
    with connect(target, options.prompt_secret, limit_bytes_per_s=options.limit_bytes_per_s) as device:
        release = yield from deploy(bundle, device, options.delivery)
        report: Report = yield from bench(
            device, release.bundle_id, options.workload, reuse=not options.fresh, prepared=release.prepared
        )
    return report
