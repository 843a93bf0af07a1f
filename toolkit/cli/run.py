"""run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.deploy import Delivery
    from toolkit.jobs import LoopOptions
    from toolkit.optimize import BuildOptions


def _loop(
    *,
    workload: str,
    build: BuildOptions,
    delivery: Delivery,
    fresh: bool,
    evaluate: bool,
    limit_bytes_per_s: float | None,
) -> LoopOptions:
    from toolkit.catalog.workload import load_workload
    from toolkit.cli import render
    from toolkit.jobs import LoopOptions

    secret = render.prompt_secret()
    return LoopOptions(load_workload(workload), build, delivery, fresh, evaluate, secret, limit_bytes_per_s)


@click.command()
@click.argument("model")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...", shell_complete=options.several_targets)
@click.option(
    "--recipe",
    "-r",
    "recipes",
    multiple=True,
    shell_complete=options.names("recipes"),
    help="Recipe; repeat it for a row each. Default: the profile's.",
)
@click.option("--context", type=click.IntRange(1), help="Context in tokens to plan for. Default: the profile's.")
@options.calibration
@options.workload
@options.offline
@options.limit_rate
@options.transport
@click.option("--force", is_flag=True, help="Go on even if the plan says that the bundle doesn't fit.")
@options.trust_remote_code
@click.option("--fresh", is_flag=True, help="Repeat measurements that are already kept.")
@options.evaluate
@options.trust_folder
@options.report
@options.gathered(build=options.build_options, delivery=options.delivery, loop=_loop, printed=options.Printed)
def run(
    model: str,
    targets: tuple[str, ...],
    recipes: tuple[str, ...],
    client: str | None,
    loop: LoopOptions,
    printed: options.Printed,
) -> None:
    """Plan, optimize, deploy and bench a model on one or more targets.

    MODEL is a Hugging Face id, ./FOLDER in Hugging Face layout, or `phi3-nano`, which ships with
    edgephi. TARGET is a name, `@tag` for every target with that tag, or `@all`. A step that is already
    done (build, installation, measurement) is skipped, so an interrupted run goes on where it stopped.
    """
    from toolkit.catalog import load_recipe
    from toolkit.catalog.target import over, select_targets
    from toolkit.cli import render
    from toolkit.cli.tables import as_payload, write_reports
    from toolkit.jobs.run import run as run_service

    for recipe in recipes:
        load_recipe(recipe)
    reached = [over(target, client) for target in select_targets(targets)]
    rows = render.follow(run_service(model, reached, recipes, loop))
    reports = [row.report for row in rows if row.report]
    if reports:
        write_reports(reports, as_payload(reports), printed)
    failed = [row for row in rows if row.error]
    for row in failed:
        if len(rows) > 1:
            render.warn(f"{row.target}, {row.recipe}: no figures")
    if failed and failed[0].error:
        raise failed[0].error
