"""toolkit.plan: predictions against what was measured, and contexts that can't be."""

from __future__ import annotations

import pytest

from tests import builds
from toolkit.errors import ConfigError
from toolkit.models import ModelShape, parse_shape
from toolkit.plan import kv_bytes_per_token, plan
from toolkit.presets import PRESETS
from toolkit.profiles import Profile, load_profile
from toolkit.recipes import Recipe, list_recipes, load_recipe


def shape(name: str) -> ModelShape:
    return parse_shape(PRESETS[name].config(), name)


MINI = shape("phi-3-mini-4k")


def with_ram(profile: Profile, available_bytes: int) -> Profile:
    hardware = profile.hardware.model_copy(update={"ram_bytes": available_bytes, "ram_reserved_bytes": 0})
    return profile.model_copy(update={"hardware": hardware})


def changed(recipe: str, **settings: object) -> Recipe:
    return load_recipe(recipe).model_copy(update=settings)


@pytest.mark.parametrize(
    ("recipe", "file_gb", "rss_gb"),
    [
        (changed("int4-rtn-b32", symmetric=True), 2.72, 3.86),
        (changed("int4-rtn-b128", symmetric=True, prune_lm_head=True), 2.03, 2.80),
    ],
    ids=["b32", "b128"],
)
def test_agrees_with_measured_phi_3_mini(recipe: Recipe, file_gb: float, rss_gb: float) -> None:
    fit = plan(MINI, recipe, load_profile("raspberry-pi-5-8gb"), 576)
    assert fit.bundle_bytes / 1e9 == pytest.approx(file_gb, rel=0.02)
    assert fit.needed_bytes / 1e9 == pytest.approx(rss_gb, rel=0.05)


@pytest.mark.parametrize("recipe", [recipe.name for recipe in list_recipes()])
def test_predicts_the_size_of_a_real_bundle(recipe: str) -> None:
    built = builds.bundle(recipe)
    model = next(a for a in built.manifest.artifacts if a.path == "model.onnx.data")
    assert built.manifest.model.parameters
    nano = parse_shape(PRESETS["phi-3-tiny-gqa"].config(), "x").model_copy(
        update={"layers": 4, "heads": 8, "kv_heads": 8, "head_dim": 32, "vocab": 3072}
    )
    fit = plan(nano, load_recipe(recipe), builds.profile())
    assert model.size_bytes == pytest.approx(fit.bundle_bytes - 4_000_000, rel=0.01)


def test_kv_cache_of_mini_is_three_quarters_of_a_mebibyte_a_token() -> None:
    recipe = load_recipe("int4-rtn-b32")
    assert kv_bytes_per_token(MINI, recipe, "cpu") == 0.75 * 2**20
    assert kv_bytes_per_token(MINI, recipe, "cuda") == 0.375 * 2**20
    assert kv_bytes_per_token(MINI, load_recipe("fp32"), "cuda") == 0.75 * 2**20


def test_grouped_query_attention_shrinks_the_cache() -> None:
    recipe = load_recipe("int4-rtn-b32")
    medium = shape("phi-3-medium-4k")
    assert kv_bytes_per_token(medium, recipe, "cpu") == 2 * 40 * 10 * 128 * 4


def test_context_defaults_to_the_profile_cut_to_the_model() -> None:
    recipe, profile = load_recipe("int4-rtn-b32"), load_profile("raspberry-pi-5-8gb")
    assert plan(MINI, recipe, profile).context_tokens == min(profile.defaults.context_tokens, 4096)
    assert plan(shape("phi-3-tiny-gqa"), recipe, profile).context_tokens <= 1024


def test_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="5000 tokens is more than the model's 4096"):
        plan(MINI, load_recipe("int4-rtn-b32"), builds.profile(), 5000)


@pytest.mark.parametrize("context", [0, -1])
def test_senseless_context_is_refused(context: int) -> None:
    with pytest.raises(ConfigError):
        plan(MINI, load_recipe("int4-rtn-b32"), builds.profile(), context)


def test_largest_context_is_exactly_the_most_that_fits() -> None:
    recipe, profile = load_recipe("int4-rtn-b32"), with_ram(builds.profile(), 5_000_000_000)
    largest = plan(MINI, recipe, profile, 1).largest_context_tokens
    assert 1 < largest < 4096
    assert plan(MINI, recipe, profile, largest).fits
    assert not plan(MINI, recipe, profile, largest + 1).fits


def test_nothing_fits_when_the_weights_do_not() -> None:
    fit = plan(MINI, load_recipe("int4-rtn-b32"), with_ram(builds.profile(), 2_000_000_000), 1)
    assert not fit.fits
    assert fit.largest_context_tokens == 0


def test_blocks_must_divide_the_matrices() -> None:
    odd = MINI.model_copy(update={"hidden": 3104})
    with pytest.raises(ConfigError, match="blocks of 128 don't divide the hidden size 3104"):
        plan(odd, load_recipe("int4-rtn-b128"), builds.profile())
