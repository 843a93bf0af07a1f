"""toolkit.metrics.footprint: sizes of real bundles, measured memory, and the work for each token."""

from __future__ import annotations

import json

import pytest

from tests.support import builds
from toolkit.catalog import ModelShape, Recipe, load_recipe
from toolkit.catalog.model import shipped_model
from toolkit.catalog.preset import PRESETS
from toolkit.catalog.recipe import MixedPrecision
from toolkit.catalog.shape import parse_shape
from toolkit.metrics.footprint import footprint, kv_bytes_per_token


def shape(name: str) -> ModelShape:
    return parse_shape(PRESETS[name].config(), name)


MINI = shape("phi-3-mini-4k")
CUT = MINI.model_copy(update={"layers": 4})


def nano() -> ModelShape:
    model = shipped_model("phi3-nano")
    assert model is not None
    return model.shape


def changed(recipe: str, **settings: object) -> Recipe:
    return load_recipe(recipe).model_copy(update=settings)


@pytest.mark.parametrize("recipe", ["fp32", "int4-rtn-b32", "int4-rtn-b128", "int4-gptq-b32"])
def test_the_size_of_a_real_bundle(recipe: str) -> None:
    built = builds.bundle(recipe).manifest
    assert footprint(nano(), load_recipe(recipe), "cpu").bundle_bytes == pytest.approx(built.size_bytes, rel=0.02)
    assert built.plan == footprint(nano(), load_recipe(recipe), "cpu")


# model.onnx.data of phi3-nano built by Olive 0.13 and Model Builder 0.14.1; for CUDA on this side of it only.
@pytest.mark.parametrize(
    ("recipe", "provider", "data_bytes"),
    [
        ("fp32", "cpu", 18_490_368),
        ("int4-rtn-b16", "cpu", 6_255_616),
        ("int4-rtn-b32", "cpu", 5_721_088),
        ("int4-rtn-b32-sym", "cpu", 5_661_696),
        ("int4-rtn-b64", "cpu", 5_453_824),
        ("int4-rtn-b128", "cpu", 2_595_840),
        ("int4-rtn-b128-kv8", "cpu", 2_595_840),
        ("int4-kquant-b32-head8", "cpu", 6_126_592),
        ("int4-kquant-b32-mixed", "cpu", 6_498_304),
        ("int4-kquant-b32-snr", "cpu", 6_295_552),
        ("int8-rtn-b128", "cpu", 4_907_008),
        ("fp16", "cuda", 9_245_184),
        ("int4-rtn-b32", "cuda", 3_840_512),
    ],
)
def test_the_size_of_weights_by_every_setting(recipe: str, provider: str, data_bytes: int) -> None:
    beside = 60 * nano().vocab + 15_000 + 8_800 * nano().layers
    predicted = footprint(nano(), load_recipe(recipe), provider).bundle_bytes - beside
    assert predicted == pytest.approx(data_bytes, rel=0.01)


def test_two_bits_for_a_share_of_the_weights() -> None:
    eleven = MixedPrecision(method="snr", bits=2, share=0.11)
    predicted = footprint(nano(), changed("int4-kquant-b128", mixed=eleven), "cpu")
    assert predicted.bundle_bytes == pytest.approx(2_786_457, rel=0.03)  # the choice of matrices needs their weights
    assert predicted.bundle_bytes < footprint(nano(), load_recipe("int4-kquant-b128"), "cpu").bundle_bytes


# Peak RSS of the runtime's process, three generations in a row, prompt and context in tokens.
@pytest.mark.parametrize(
    ("cut", "recipe", "prompt", "context", "measured_mb"),
    [
        (False, "int4-rtn-b32", 512, 640, 4280),
        (False, "int4-rtn-b128", 512, 640, 3120),
        (True, "int4-rtn-b32", 16, 32, 580),
        (True, "int4-rtn-b32", 512, 640, 994),
        (True, "int4-rtn-b32", 512, 4096, 1271),
        (True, "int4-rtn-b32", 1024, 4096, 1571),
        (True, "int4-rtn-b32-fp32math", 512, 640, 784),
        (True, "int4-rtn-b128", 128, 640, 541),
        (True, "int4-rtn-b128", 512, 640, 771),
        (True, "int4-rtn-b128", 1024, 4096, 1411),
        (True, "int8-rtn-b128", 512, 640, 1049),
    ],
)
def test_measured_memory(cut: bool, recipe: str, prompt: int, context: int, measured_mb: int) -> None:
    found = footprint(CUT if cut else MINI, load_recipe(recipe), "cpu")
    assert found.steady_bytes(context, prompt) / 1e6 == pytest.approx(measured_mb, rel=0.06)


@pytest.mark.parametrize(
    ("recipe", "measured_mb"),
    [("int4-rtn-b32", 605), ("int4-rtn-b128", 432), ("int8-rtn-b128", 759), ("int4-rtn-b32-fp32math", 373)],
)
def test_measured_memory_while_loading(recipe: str, measured_mb: int) -> None:
    # Scales that fp32 kernels read from the file are touched by the first token, not while loading.
    rel = 0.07 if recipe != "int4-rtn-b32-fp32math" else 0.3
    assert footprint(CUT, load_recipe(recipe), "cpu").load_bytes / 1e6 == pytest.approx(measured_mb, rel=rel)


def test_a_pruned_head_needs_no_logits() -> None:
    plain = footprint(MINI, load_recipe("int4-rtn-b128"), "cpu")
    pruned = footprint(MINI, load_recipe("int4-rtn-b128-pruned"), "cpu")
    assert plain.prompt_bytes_per_token - pruned.prompt_bytes_per_token == 3 * 4 * MINI.vocab


def test_kv_cache_of_mini_is_three_quarters_of_a_mebibyte_a_token() -> None:
    recipe = load_recipe("int4-rtn-b32")
    assert kv_bytes_per_token(MINI, recipe, "cpu") == 0.75 * 2**20
    assert kv_bytes_per_token(MINI, recipe, "cuda") == 0.375 * 2**20
    assert kv_bytes_per_token(MINI, load_recipe("fp32"), "cuda") == 0.75 * 2**20
    assert kv_bytes_per_token(MINI, load_recipe("int4-rtn-b128-kv8"), "cpu") == 0.1875 * 2**20


def test_grouped_query_attention_shrinks_the_cache() -> None:
    medium = shape("phi-3-medium-4k")
    assert kv_bytes_per_token(medium, load_recipe("int4-rtn-b32"), "cpu") == 2 * 40 * 10 * 128 * 4


def test_the_largest_context_on_both_sides_of_the_prompt() -> None:
    found = footprint(MINI, load_recipe("int4-rtn-b32"), "cpu")
    for room in (found.load_bytes + 10_000_000, found.load_bytes + 900_000_000, found.load_bytes + 3_000_000_000):
        largest = found.largest_context(room, 512)
        assert found.steady_bytes(largest, 512) <= room < found.steady_bytes(largest + 1, 512)
    assert found.largest_context(found.load_bytes - 1, 512) == 0


def test_it_survives_json() -> None:
    found = footprint(MINI, load_recipe("int4-rtn-b32"), "cpu")
    text = json.dumps(found.model_dump() | {"a_field_of_tomorrow": 1})
    assert type(found).model_validate_json(text) == found
