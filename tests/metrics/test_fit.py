"""toolkit.metrics.fit: models that fit, the largest context, and impossible contexts."""

from __future__ import annotations

import pytest

from tests.support import builds
from toolkit.catalog import ModelShape, Profile, load_profile, load_recipe
from toolkit.catalog.preset import PRESETS
from toolkit.catalog.shape import parse_shape
from toolkit.errors import ConfigError
from toolkit.metrics import plan


def shape(name: str) -> ModelShape:
    return parse_shape(PRESETS[name].config(), name)


MINI = shape("phi-3-mini-4k")


def with_ram(profile: Profile, available_bytes: int) -> Profile:
    hardware = profile.hardware.model_copy(update={"ram_bytes": available_bytes, "ram_reserved_bytes": 0})
    return profile.model_copy(update={"hardware": hardware})


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
    largest = plan(MINI, recipe, profile, 2048).largest_context_tokens
    assert 512 < largest < 4096
    assert plan(MINI, recipe, profile, largest).fits
    assert not plan(MINI, recipe, profile, largest + 1).fits


def test_nothing_fits_when_the_weights_do_not() -> None:
    fit = plan(MINI, load_recipe("int4-rtn-b32"), with_ram(builds.profile(), 2_000_000_000), 1)
    assert not fit.fits
    assert fit.largest_context_tokens == 0


def test_chunks_bound_what_a_prompt_takes() -> None:
    recipe, profile = load_recipe("int4-rtn-b32"), load_profile("raspberry-pi-5-8gb")
    runtime = profile.runtime.model_copy(update={"chunk_size": 128})
    whole = plan(MINI, recipe, profile, 2048)
    chunked = plan(MINI, recipe, profile.model_copy(update={"runtime": runtime}), 2048)
    assert (whole.at_once_tokens, chunked.at_once_tokens) == (512, 128)
    assert whole.needed_bytes - chunked.needed_bytes == 384 * whole.footprint.prompt_bytes_per_token
    assert whole.ttft_ms == chunked.ttft_ms


def test_a_provider_that_nothing_is_built_for_runs_on_the_cpu() -> None:
    npu = load_profile("laptop-npu-intel")
    fit = plan(MINI, load_recipe("int4-rtn-b32"), npu)
    assert fit.footprint == plan(MINI, load_recipe("int4-rtn-b32"), load_profile("laptop-cpu-x86")).footprint


def test_blocks_must_divide_the_matrices() -> None:
    odd = MINI.model_copy(update={"hidden": 3104})
    with pytest.raises(ConfigError, match="blocks of 128 don't divide the hidden size 3104"):
        plan(odd, load_recipe("int4-rtn-b128"), builds.profile())


def test_longrope_beyond_its_original_context_is_planned_as_read_whole() -> None:
    model, recipe = shape("phi-3-mini-128k"), load_recipe("int4-rtn-b32")
    board = load_profile("raspberry-pi-5-16gb")
    assert board.runtime.settings.chunk_size == 512
    assert plan(model, recipe, board, 4096, prompt=2048).at_once_tokens == 512
    assert plan(model, recipe, board, 8192, prompt=2048).at_once_tokens == 2048
