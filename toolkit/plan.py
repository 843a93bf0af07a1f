"""The fit plan: what a bundle will take on disk and in memory, before anything is downloaded or built.

The constants were fitted to Phi-3-mini (3.8 B) in int4 under onnxruntime-genai 0.18 on an x86 CPU, at 576
tokens: blocks of 32 → 2.72 GB on disk and 3.86 GB of peak RSS; blocks of 128 with a 4-bit embedding → 2.03
and 2.80 GB.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.errors import ConfigError
from toolkit.models import ModelShape
from toolkit.profiles import Profile
from toolkit.recipes import Recipe

# Python, ONNX Runtime and the tokenizer, without any model.
_RUNTIME_BYTES = 120_000_000
# A CUDA context and cuBLAS on top: an estimate, measured on no device yet.
_CUDA_BYTES = 700_000_000
# The prompt is processed in one piece up to this length.
_PREFILL_TOKENS = 512
_SCALE_BYTES = 4
# Of the stated bandwidth, what decoding reached: 20.5 to 22.9 GB/s of 40 on full-size mini, blocks of 32 and of 128
# (two x86 cores, both threads). Boards are not measured yet.
_BANDWIDTH_SHARE = 0.55
# Graph, tokenizer, configuration.
_SMALL_FILES_BYTES = 4_000_000


@dataclass(frozen=True)
class FitPlan:
    """What is predicted for one model, recipe and profile.

    `steady_bytes` is the process's memory with the whole context in use, `load_bytes` its peak while loading;
    the larger of them must be at most `available_bytes`. `largest_context_tokens` is 0 when not even one
    token fits. `decode_tps` is for a short context, None where the profile names no memory bandwidth.
    """

    bundle_bytes: int
    kv_bytes_per_token: int
    kv_cache_bytes: int
    load_bytes: int
    steady_bytes: int
    available_bytes: int
    context_tokens: int
    largest_context_tokens: int
    decode_tps: float | None

    @property
    def needed_bytes(self) -> int:
        return max(self.load_bytes, self.steady_bytes)

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.available_bytes


def plan(shape: ModelShape, recipe: Recipe, profile: Profile, context: int | None = None) -> FitPlan:
    """Predict size and memory of `shape` built by `recipe` on a device of `profile`.

    `context` (tokens) defaults to the profile's, cut to what the model knows. Raises ConfigError when a
    context is asked for that the model doesn't have, and when the recipe's blocks don't divide the model's
    matrices.
    """
    _check_blocks(shape, recipe)
    tokens = _context_tokens(shape, profile, context)
    provider = profile.runtime.provider
    per_token = kv_bytes_per_token(shape, recipe, provider)
    resident = _weight_bytes(shape, recipe) + _block_sum_bytes(shape, recipe)
    runtime = _RUNTIME_BYTES + (_CUDA_BYTES if provider == "cuda" else 0)
    fixed = resident + runtime + _activation_bytes(shape, recipe)
    available = profile.hardware.ram_bytes - profile.hardware.ram_reserved_bytes
    load = resident + runtime + _largest_tensor_bytes(shape, recipe)
    room = available - fixed if load <= available else 0
    return FitPlan(
        bundle_bytes=_weight_bytes(shape, recipe) + _SMALL_FILES_BYTES,
        kv_bytes_per_token=per_token,
        kv_cache_bytes=tokens * per_token,
        load_bytes=load,
        steady_bytes=fixed + tokens * per_token,
        available_bytes=available,
        context_tokens=tokens,
        largest_context_tokens=min(shape.max_context, max(0, room // per_token)),
        decode_tps=_decode_tps(shape, recipe, profile),
    )


def _decode_tps(shape: ModelShape, recipe: Recipe, profile: Profile) -> float | None:
    """Each token reads every matrix once, so memory bandwidth bounds the rate; the embedding is one row."""
    bandwidth = profile.hardware.memory_bandwidth_bytes_per_s
    if bandwidth is None:
        return None
    return _BANDWIDTH_SHARE * bandwidth / (shape.linear_parameters * _bytes_per_weight(recipe))


def kv_bytes_per_token(shape: ModelShape, recipe: Recipe, provider: str) -> int:
    """Keys and values of one token in all layers: fp16 on CUDA for quantized models, fp32 otherwise."""
    value_bytes = 2 if provider == "cuda" and recipe.quantized else 4
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * value_bytes


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


def _bytes_per_weight(recipe: Recipe) -> float:
    """A quantized weight with its share of the block's scale and zero point; 4 when nothing is quantized."""
    if recipe.block_size is None:
        return 4.0
    zero_point = 0.0 if recipe.symmetric else recipe.bits / 8 / recipe.block_size
    return recipe.bits / 8 + _SCALE_BYTES / recipe.block_size + zero_point


def _weight_bytes(shape: ModelShape, recipe: Recipe) -> int:
    per_embedding = _bytes_per_weight(recipe) if recipe.quantize_embedding else 4.0
    linear = shape.linear_parameters * _bytes_per_weight(recipe)
    norms = shape.norm_parameters * 4
    return round(linear + shape.embedding_parameters * per_embedding + norms + _rotary_bytes(shape))


def _rotary_bytes(shape: ModelShape) -> int:
    """Tables of sines and cosines for every position; LongRoPE has a second pair for short texts."""
    positions = shape.max_context + (shape.original_context if shape.rope != "default" else 0)
    return positions * shape.head_dim * 4


def _block_sum_bytes(shape: ModelShape, recipe: Recipe) -> int:
    """The int8 kernels keep one fp32 sum for each block beside the weights."""
    if recipe.block_size is None or recipe.accuracy_level != 4:
        return 0
    return shape.linear_parameters // recipe.block_size * 4


def _activation_bytes(shape: ModelShape, recipe: Recipe) -> int:
    rows = min(_PREFILL_TOKENS, shape.max_context)
    logit_rows = 1 if recipe.prune_lm_head else rows
    return 4 * (rows * (2 * shape.intermediate + 6 * shape.hidden) + logit_rows * shape.vocab)


def _largest_tensor_bytes(shape: ModelShape, recipe: Recipe) -> int:
    """While a tensor is repacked, it is there twice."""
    per_embedding = _bytes_per_weight(recipe) if recipe.quantize_embedding else 4.0
    return round(shape.embedding_parameters * per_embedding)
