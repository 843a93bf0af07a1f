"""plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.plan import FitPlan
    from toolkit.profiles import Profile


@click.command()
@click.argument("model")
@click.option("--profile", "-p", "profile_name", shell_complete=options.names("profiles"), help="Class of device.")
@click.option("--target", "-t", shell_complete=options.names("targets"), help="Take this target's profile.")
@click.option(
    "--recipe",
    "-r",
    "recipes",
    multiple=True,
    shell_complete=options.names("recipes"),
    help="Recipe; repeat it. Default: all of them.",
)
@click.option("--context", "-c", type=click.IntRange(min=1), help="Context in tokens. Default: the profile's.")
@options.as_json
def plan(
    model: str,
    profile_name: str | None,
    target: str | None,
    recipes: tuple[str, ...],
    context: int | None,
    as_json: bool,
) -> None:
    """Predict size and memory before anything is downloaded or built.

    MODEL is a folder with a config.json, phi3-nano, a preset of `edgephi model list` or its hub id. Nothing is
    downloaded, no weights are read.
    """
    from toolkit.cli import render
    from toolkit.models import known_shape
    from toolkit.plan import plan as make_plan
    from toolkit.recipes import list_recipes, load_recipe

    profile = _profile(profile_name, target)
    shape = known_shape(model)
    chosen = [load_recipe(name) for name in recipes] or list_recipes()
    plans = {recipe.name: make_plan(shape, recipe, profile, context) for recipe in chosen}
    if as_json:
        render.print_json(
            [{"recipe": name, **vars(fit), "fits": fit.fits, "profile": profile.name} for name, fit in plans.items()]
        )
        return
    columns = ["recipe", "bundle", "KV cache", "load\npeak", "memory", "fits", "largest\ncontext", "decode\ntok/s ≈"]
    render.table(columns, [[name, *_row(fit)] for name, fit in plans.items()], title=f"{model} on {profile.name}")
    fit = next(iter(plans.values()))
    render.note(
        f"  context {fit.context_tokens} tokens; {render.size(fit.available_bytes)} of memory for the model. "
        "Predicted, not measured: docs/metrics.md"
    )


def _profile(name: str | None, target: str | None) -> Profile:
    from toolkit.profiles import load_profile
    from toolkit.targets import load_target

    if (name is None) == (target is None):
        raise click.UsageError("give either --profile or --target")
    return load_profile(name if name is not None else load_target(str(target)).profile)


def _row(fit: FitPlan) -> list[str]:
    from toolkit.cli import render

    return [
        render.size(fit.bundle_bytes),
        render.size(fit.kv_cache_bytes),
        render.size(fit.load_bytes),
        render.size(fit.steady_bytes),
        "yes" if fit.fits else "NO",
        str(fit.largest_context_tokens),
        render.figure(fit.decode_tps),
    ]
