"""The fit plan: a bundle's predicted memory and speed on a device, before anything is downloaded or built."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.catalog import ModelShape, Profile, Recipe
from toolkit.catalog.recipe import PROVIDERS
from toolkit.errors import ConfigError
from toolkit.metrics.footprint import Footprint, footprint
from toolkit.metrics.report import Predicted
from toolkit.metrics.speed import SpeedBook, predict

PROMPT_TOKENS = 512


@dataclass(frozen=True)
class FitPlan:
    """The predictions for one model, recipe and device.

    Memory is the process's peak with the whole context in use and `at_once_tokens` of the prompt processed together, or
    while loading, whichever is more; it must be at most `available_bytes`. `largest_context_tokens` is 0 when not even
    one token fits. Rates are for that prompt and for decoding right after it.
    """

    footprint: Footprint
    available_bytes: int
    context_tokens: int
    prompt_tokens: int
    at_once_tokens: int
    largest_context_tokens: int
    predicted: Predicted

    @property
    def bundle_bytes(self) -> int:
        return self.footprint.bundle_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        return self.footprint.kv_bytes_per_token

    @property
    def kv_cache_bytes(self) -> int:
        return self.context_tokens * self.footprint.kv_bytes_per_token

    @property
    def load_bytes(self) -> int:
        return self.footprint.load_bytes

    @property
    def steady_bytes(self) -> int:
        return self.footprint.steady_bytes(self.context_tokens, self.at_once_tokens)

    @property
    def needed_bytes(self) -> int:
        return max(self.load_bytes, self.steady_bytes)

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.available_bytes

    @property
    def decode_tps(self) -> float | None:
        return self.predicted.decode_tps

    @property
    def prefill_tps(self) -> float | None:
        return self.predicted.prefill_tps

    @property
    def ttft_ms(self) -> float | None:
        return self.predicted.ttft_ms


def plan(
    shape: ModelShape,
    recipe: Recipe,
    profile: Profile,
    context: int | None = None,
    *,
    prompt: int = PROMPT_TOKENS,
    known: SpeedBook | None = None,
) -> FitPlan:
    """Predict `shape` built by `recipe` on a device of `profile`, by the `known` speed of one machine if it is given.

    `context` (tokens) defaults to the profile's, cut to the model's longest; `prompt` is cut to the context. Raises
    ConfigError when `context` is longer than the model's longest, and when the recipe's blocks don't divide the model's
    matrices.
    """
    _check_blocks(shape, recipe)
    tokens = _context_tokens(shape, profile, context)
    provider = profile.runtime.provider
    found = footprint(shape, recipe, provider if provider in PROVIDERS else "cpu")
    prompt, chunk = min(prompt, tokens), _chunk_tokens(shape, profile, tokens)
    available = profile.hardware.room_bytes
    at_once = min(prompt, chunk or prompt)
    speed = (known or SpeedBook(profile, None)).speed(found)
    return FitPlan(
        footprint=found,
        available_bytes=available,
        context_tokens=tokens,
        prompt_tokens=prompt,
        at_once_tokens=at_once,
        largest_context_tokens=min(shape.max_context, found.largest_context(available, at_once)),
        predicted=predict(found, speed, prompt, 0, tokens, chunk),
    )


def _chunk_tokens(shape: ModelShape, profile: Profile, context_tokens: int) -> int:
    """The tokens of a prompt that are read at once, 0 for all; the agent says why LongRoPE isn't read in chunks."""
    if shape.rope != "default" and context_tokens > shape.original_context:
        return 0
    return profile.runtime.settings.chunk_size or 0


def _context_tokens(shape: ModelShape, profile: Profile, context: int | None) -> int:
    if context is None:
        return min(profile.defaults.context_tokens, shape.max_context)
    if context < 1:
        raise ConfigError(f"a context of {context} tokens makes no sense", "it counts prompt and answer")
    if context > shape.max_context:
        raise ConfigError(
            f"a context of {context} tokens is more than the model's {shape.max_context}",
            f"ask for at most {shape.max_context}",
        )
    return context


def _check_blocks(shape: ModelShape, recipe: Recipe) -> None:
    if recipe.block_size is None:
        return
    widths = {"hidden size": shape.hidden, "intermediate size": shape.intermediate}
    for name, width in widths.items():
        if width % recipe.block_size:
            message = f"recipe '{recipe.name}': blocks of {recipe.block_size} don't divide the {name} {width}"
            raise ConfigError(message, "take a recipe with smaller blocks")
