"""plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.catalog import ModelShape, Profile, Recipe
    from toolkit.metrics import FitPlan
    from toolkit.metrics.build_needs import HostNeeds
    from toolkit.metrics.measurement import Measurement

_COLUMNS = (
    "recipe",
    "bundle",
    "KV cache",
    "load\npeak",
    "memory",
    "fits",
    "largest\ncontext",
    "prefill\ntok/s ≈",
    "TTFT\nms ≈",
    "decode\ntok/s ≈",
    "build\nmemory",
    "build\ndisk",
)
_SOURCES = {
    "stated": "the profile's data sheet",
    "measured": "a second of measuring it",
    "reports": "{count} of its reports",
    None: "nothing known (--target T --measure)",
}


@click.command()
@click.argument("model")
@click.option("--profile", "-p", "profile_name", shell_complete=options.names("profiles"), help="Device class.")
@click.option(
    "--target",
    "-t",
    shell_complete=options.names("targets"),
    help="Use this target's profile and measurements.",
)
@click.option(
    "--recipe",
    "-r",
    "recipes",
    multiple=True,
    shell_complete=options.names("recipes"),
    help="Recipe; repeat it. Default: the profile's.",
)
@click.option("--all", "all_recipes", is_flag=True, help="Every recipe.")
@click.option("--context", "-c", type=click.IntRange(min=1), help="Context in tokens. Default: the profile's.")
@click.option(
    "--prompt",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Prompt length in tokens for the predicted speed, TTFT and memory.",
)
@click.option("--measure", "fresh", is_flag=True, help="Measure the target's memory and compute first, for a second.")
@options.unlocked_packages
@options.trust_folder
@options.as_json
def plan(
    model: str,
    profile_name: str | None,
    target: str | None,
    recipes: tuple[str, ...],
    all_recipes: bool,
    context: int | None,
    prompt: int,
    fresh: bool,
    as_json: bool,
) -> None:
    """Predict size, memory and speed before anything is downloaded or built.

    MODEL is ./FOLDER with a config.json, phi3-nano, a preset of `edgephi models list`, or a hub id, of which nothing
    but config.json is fetched. Speed comes from the profile's data sheet, from one second of measuring the target, or
    from its reports. The last columns are the memory and disk that the build
    takes on this machine.
    """
    from toolkit.cli import render
    from toolkit.metrics import plan as make_plan
    from toolkit.metrics.speed import SpeedBook
    from toolkit.optimize import resolve_shape

    if fresh and target is None:
        raise click.UsageError("--measure needs a --target")
    profile = _profile(profile_name, target)
    shape = render.follow(resolve_shape(model))
    chosen = _recipes(recipes, profile, all_recipes=all_recipes)
    name, measured = _measured_target(target, profile, fresh=fresh)
    known = SpeedBook(profile, name, measured=measured)
    if known.contradicted:
        again = f"edgephi plan {model} --target {name} --measure"
        render.warn(f"{name}: its reports contradict the second of measuring, which isn't used; again: {again}")
    fits = {r.name: make_plan(shape, r, profile, context, prompt=prompt, known=known) for r in chosen}
    needs = {recipe.name: _needs(shape, recipe, profile) for recipe in chosen}
    if as_json:
        render.print_json([_payload(name, fit, needs[name], profile) for name, fit in fits.items()])
        return
    title = f"{model} on {target or profile.name}"
    render.table(_COLUMNS, [_row(name, fit, needs[name]) for name, fit in fits.items()], title=title)
    _say_sources(next(iter(fits.values())), prompt)
    _warn_host(needs)


def _profile(name: str | None, target: str | None) -> Profile:
    from toolkit.catalog import load_profile, load_target

    if (name is None) == (target is None):
        raise click.UsageError("give either --profile or --target")
    return load_profile(name if name is not None else load_target(str(target)).profile)


def _recipes(names: tuple[str, ...], profile: Profile, *, all_recipes: bool) -> list[Recipe]:
    from toolkit.catalog import load_recipe
    from toolkit.catalog.recipe import impossible, list_recipes
    from toolkit.optimize import build_provider

    if names and all_recipes:
        raise click.UsageError("give either --recipe or --all")
    if all_recipes:
        return [recipe for recipe in list_recipes() if not impossible(recipe, build_provider(profile))]
    return [load_recipe(name) for name in names or (profile.defaults.recipe,)]


def _measured_target(target: str | None, profile: Profile, *, fresh: bool) -> tuple[str | None, Measurement | None]:
    """Name the target whose measurements the plan uses, None without one; and measure it first with `fresh`.

    The profile `local` is this machine, which has no data sheet: it is also measured the first time.
    """
    from toolkit.agent.requests import TakeProbe
    from toolkit.bench import target_key
    from toolkit.bench.measure import measure
    from toolkit.cli import render
    from toolkit.deploy import prepare
    from toolkit.deploy.runtime import describe
    from toolkit.device import connect
    from toolkit.metrics.measurement import find_measurement

    here = profile.name == "local" and target in (None, "local")
    name = target or ("local" if here else None)
    if name is None or not (fresh or (here and find_measurement(name) is None)):
        return name, None
    with connect(name, render.prompt_secret()) as device:
        if fresh:
            prepared = render.follow(prepare(device))
            probe, runtime = prepared.probe, prepared.runtime
        else:
            # A user who asks for a plan hasn't asked for an installed runtime.
            probe = device.ask(TakeProbe())
            runtime = describe(device.target, device.profile, probe)
        measured = render.follow(measure(device, runtime, target_key(device, probe), fresh=fresh))
    return name, measured


def _needs(shape: ModelShape, recipe: Recipe, profile: Profile) -> HostNeeds:
    from toolkit.metrics.build_needs import host_needs
    from toolkit.optimize import build_provider

    return host_needs(shape, recipe, build_provider(profile))


def _payload(name: str, fit: FitPlan, needs: HostNeeds, profile: Profile) -> dict[str, Any]:
    return {
        "recipe": name,
        "profile": profile.name,
        "bundle_bytes": fit.bundle_bytes,
        "context_tokens": fit.context_tokens,
        "kv_bytes_per_token": fit.kv_bytes_per_token,
        "kv_cache_bytes": fit.kv_cache_bytes,
        "load_bytes": fit.load_bytes,
        "steady_bytes": fit.steady_bytes,
        "needed_bytes": fit.needed_bytes,
        "available_bytes": fit.available_bytes,
        "fits": fit.fits,
        "largest_context_tokens": fit.largest_context_tokens,
        "prompt_tokens": fit.prompt_tokens,
        "prefill_tps": fit.prefill_tps,
        "ttft_ms": fit.ttft_ms,
        "decode_tps": fit.decode_tps,
        "prefill_source": fit.predicted.prefill_source,
        "decode_source": fit.predicted.decode_source,
        "reports": fit.predicted.reports,
        "host": vars(needs),
    }


def _row(name: str, fit: FitPlan, needs: HostNeeds) -> list[str]:
    from toolkit.cli import render

    return [
        name,
        render.size(fit.bundle_bytes),
        render.memory(fit.kv_cache_bytes),
        render.memory(fit.load_bytes),
        render.memory(fit.steady_bytes),
        "yes" if fit.fits else "NO",
        str(fit.largest_context_tokens),
        render.figure(fit.prefill_tps),
        render.figure(fit.ttft_ms),
        render.figure(fit.decode_tps),
        render.memory(needs.ram_bytes),
        render.size(needs.disk_bytes),
    ]


def _say_sources(fit: FitPlan, prompt: int) -> None:
    from toolkit.cli import render

    predicted = fit.predicted
    decode = _SOURCES[predicted.decode_source].format(count=predicted.reports)
    prefill = _SOURCES[predicted.prefill_source].format(count=predicted.reports)
    speed = decode if decode == prefill else f"{decode} (decode) and {prefill} (prefill)"
    render.note(
        f"  context {fit.context_tokens} tokens, prompt {min(prompt, fit.context_tokens)}; "
        f"{render.memory(fit.available_bytes)} of memory for the model. Speed from {speed}. "
        "Predicted, not measured: docs/metrics.md"
    )


def _warn_host(needs: dict[str, HostNeeds]) -> None:
    from toolkit import localhost
    from toolkit.cli import render
    from toolkit.config import cache_dir
    from toolkit.metrics.build_needs import free_disk_bytes

    memory, disk = localhost.available_memory(), free_disk_bytes(cache_dir())
    for name, need in needs.items():
        if memory is not None and need.ram_bytes > memory.total_bytes:
            render.warn(f"{name}: this machine has {render.memory(memory.total_bytes)} of memory free for the build")
        if need.disk_bytes > disk:
            render.warn(f"{name}: this machine has {render.size(disk)} of disk free for the build")
