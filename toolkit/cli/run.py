"""run."""

from __future__ import annotations

from pathlib import Path

import click

from toolkit.cli import options


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
@click.option("--force", is_flag=True, help="Go on although the plan says that it doesn't fit.")
@options.trust_remote_code
@click.option("--fresh", is_flag=True, help="Measure again what was already measured.")
@options.evaluate
@options.report
def run(
    model: str,
    targets: tuple[str, ...],
    recipes: tuple[str, ...],
    context: int | None,
    calibration: Path | None,
    workload: str,
    offline: bool | None,
    wheels: Path | None,
    limit_bytes_per_s: float | None,
    client: str | None,
    force: bool,
    trust_remote_code: bool,
    fresh: bool,
    evaluate: bool,
    as_json: bool,
    markdown: bool,
    output: Path | None,
) -> None:
    """Plan, optimize, deploy and bench a model on one or more targets.

    MODEL is a Hugging Face id, a local folder in Hugging Face layout, or `phi3-nano`, which ships with
    edgephi. TARGET is a name, `@tag` for every target with that tag, or `@all`. What is already done (built,
    installed, measured) is skipped, so an interrupted run goes on where it stopped.
    """
    from toolkit.catalog.recipe import load_recipe
    from toolkit.catalog.target import over, select_targets
    from toolkit.catalog.workload import load_workload
    from toolkit.cli import render
    from toolkit.cli.tables import as_payload, write_reports
    from toolkit.deploy.install import Delivery
    from toolkit.jobs.run import LoopOptions
    from toolkit.jobs.run import run as run_service

    for recipe in recipes:
        load_recipe(recipe)
    chosen = LoopOptions(
        load_workload(workload),
        context,
        Delivery(offline, wheels, force),
        calibration,
        fresh,
        render.prompt_secret(),
        trust_remote_code=trust_remote_code,
        evaluate=evaluate,
        limit_bytes_per_s=limit_bytes_per_s,
    )
    reached = [over(target, client) for target in select_targets(targets)]
    rows = render.follow(run_service(model, reached, recipes, chosen))
    reports = [row.report for row in rows if row.report]
    if reports:
        write_reports(reports, as_payload(reports), as_json=as_json, markdown=markdown, output=output)
    failed = [row for row in rows if row.error]
    for row in failed:
        if len(rows) > 1:
            render.warn(f"{row.target}, {row.recipe}: no figures")
    if failed and failed[0].error:
        raise failed[0].error
