"""`edgephi optimize`: quantize a model into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.bundle import Bundle
    from toolkit.optimize import BuildOptions, BuildRequest


def _request(*, model: str, profile_name: str, recipe_name: str | None, build: BuildOptions) -> BuildRequest:
    from toolkit.catalog import load_profile, load_recipe
    from toolkit.optimize import BuildRequest

    profile = load_profile(profile_name)
    return BuildRequest(model, load_recipe(recipe_name or profile.defaults.recipe), profile, build)


@click.command()
@click.argument("model")
@click.option(
    "-p",
    "--profile",
    "profile_name",
    required=True,
    shell_complete=options.names("profiles"),
    help="Device class that the bundle is for.",
)
@click.option(
    "-r",
    "--recipe",
    "recipe_name",
    shell_complete=options.names("recipes"),
    help="Recipe to quantize with. Default: the profile's.",
)
@click.option("-c", "--context", type=click.IntRange(min=1), help="Tokens of prompt and answer together.")
@options.calibration
@click.option("--dry-run", is_flag=True, help="Print the Olive workflow; build and download nothing.")
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Load the bundle and generate before storing it.",
)
@click.option("--force", is_flag=True, help="Build even if the bundle isn't expected to fit the device.")
@click.option("--fresh", is_flag=True, help="Build anew instead of taking what is built already.")
@options.trust_remote_code
@options.evaluate
@options.unlocked_packages
@options.trust_folder
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="Folder to put a copy of the bundle into.")
@options.as_json
@options.gathered(build=options.build_options, request=_request)
def optimize(
    request: BuildRequest, dry_run: bool, check: bool, fresh: bool, evaluate: bool, out: Path | None, as_json: bool
) -> None:
    """Quantize a model with Olive into a bundle.

    MODEL is ./FOLDER in Hugging Face layout, a hub id (org/name or org/name@revision), or phi3-nano. What is built
    already is hashed, and built again where it is damaged.
    """
    from toolkit.bench import with_figures
    from toolkit.cli import render
    from toolkit.deploy import check_here
    from toolkit.optimize import optimize as optimize_service
    from toolkit.optimize.job import with_local_model, workflow_for

    if dry_run:
        request = with_local_model(request)
        _show_plan(request)
        render.print_json(workflow_for(request))
        return
    bundle = render.follow(optimize_service(request, out=out, check=check_here if check else None, fresh=fresh))
    if evaluate:
        bundle = render.follow(with_figures(bundle, request.model, request.options))
    _show(bundle, as_json=as_json)


def _show_plan(request: BuildRequest) -> None:
    from toolkit.catalog.model import known_shape
    from toolkit.catalog.preset import PRESETS
    from toolkit.cli import render
    from toolkit.metrics import plan
    from toolkit.metrics.build_needs import host_needs

    model, recipe, profile = request.model, request.recipe, request.profile
    if isinstance(model, str) and model not in {preset.hub_id for preset in PRESETS.values()}:
        render.note(f"no plan without its config.json: edgephi plan {model} -p {profile.name} fetches that file")
        return
    shape = known_shape(model) if isinstance(model, str) else model.shape
    fit = plan(shape, recipe, profile, request.options.context_tokens)
    needs = host_needs(shape, recipe, request.provider)
    verdict = "fits" if fit.fits else "does NOT fit"
    render.note(
        f"{recipe.name} on {profile.name} {verdict}: {render.size(fit.bundle_bytes)} on disk, "
        f"{render.memory(fit.needed_bytes)} of {render.memory(fit.available_bytes)} memory "
        f"with a context of {fit.context_tokens} tokens; building it here takes about {render.memory(needs.ram_bytes)} "
        f"of memory and {render.size(needs.disk_bytes)} of disk"
    )


def _show(bundle: Bundle, *, as_json: bool) -> None:
    from toolkit.cli import render

    if as_json:
        render.print_json(
            {"id": bundle.id, "path": str(bundle.path), "manifest": bundle.manifest.model_dump(mode="json")}
        )
        return
    manifest = bundle.manifest
    rows = [
        [manifest.name, bundle.id[:12], render.size(manifest.size_bytes), str(manifest.context_tokens)],
    ]
    render.table(["bundle", "id", "size", "context"], rows)
    render.note(f"in {bundle.path}")
