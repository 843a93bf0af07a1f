"""The footprint of a model built by a recipe, on any device: bytes on disk and in memory, and work for each token.

Sizes follow from the shape. The parts of the memory were measured on a four-layer cut of Phi-3-mini under
onnxruntime-genai 0.18 on an x86 CPU (blocks of 32 and 128, 4 and 8 bits, prompts of 16 to 1,024 tokens, contexts of 32
to 4,096): the kernels hold each matrix repacked, with its scales and a sum for every block; the file's own scales and
zero points stay mapped and touched; the token table stays in the file, and a text touches a few rows of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from toolkit.catalog import ModelShape, Recipe
from toolkit.catalog.recipe import MixedPrecision
from toolkit.catalog.record import OpenRecord

# Python, ONNX Runtime and the tokenizer: 42 MB of mapped libraries, the rest private.
_RUNTIME_BYTES = 80_000_000
# A CUDA context and cuBLAS need this much more: an estimate, measured on no device yet.
_CUDA_BYTES = 700_000_000
# The arena keeps the buffers of three prompts in a row: the logits of each token three times, and this many vectors of
# the model's two widths.
_LOGIT_COPIES = 3
_WIDE_VECTORS, _HIDDEN_VECTORS = 4, 7
# Time per token and layer that isn't reading weights: phi3-nano's four layers, 0.2 ms beside its 2.5 MB.
_LAYER_S = 50e-6
# The int8 kernels scale and add once for each block of a row: blocks of 32 take 1.43 times the time of blocks of 128
# (28.7 against 41.1 prompt tokens/s on full-size mini), which is 1 + 21.6 / block.
_BLOCK_COST = 21.6
# Without int8 kernels, in fp32, the same prompts take this many times the operations.
_FLOAT_COST = 2.3
_GRAPH_BYTES, _GRAPH_BYTES_PER_LAYER = 15_000, 8_800
_TOKENIZER_BYTES_PER_TOKEN = 60


Figure = Annotated[int, Field(ge=1, lt=2**80)]


class Footprint(OpenRecord):
    """Device-independent figures of one bundle, which travel in its manifest.

    `base_bytes` is the process's memory before any token, `load_bytes` its peak while loading. Every token of the
    context adds `kv_bytes_per_token`, every token of a prompt that is processed at once `prompt_bytes_per_token`.
    Decoding reads `read_bytes_per_token` of weights; a prompt's token takes `prompt_ops_per_token` operations, in units
    of an int8 product with endless blocks, and `attention_ops` for each token before it.
    """

    bundle_bytes: Figure
    base_bytes: Figure
    load_bytes: Figure
    kv_bytes_per_token: Figure
    prompt_bytes_per_token: Figure
    read_bytes_per_token: Figure
    prompt_ops_per_token: Figure
    attention_ops: Figure
    step_s: Annotated[float, Field(gt=0, lt=1e6)]

    def steady_bytes(self, context_tokens: int, prompt_tokens: int) -> int:
        """The process's peak memory with a context of that length and prompts of at most that many tokens at once."""
        prompt = min(prompt_tokens, context_tokens) * self.prompt_bytes_per_token
        return self.base_bytes + context_tokens * self.kv_bytes_per_token + prompt

    def needed_bytes(self, context_tokens: int, prompt_tokens: int) -> int:
        return max(self.load_bytes, self.steady_bytes(context_tokens, prompt_tokens))

    def largest_context(self, available_bytes: int, prompt_tokens: int) -> int:
        """The longest context that `available_bytes` hold; 0 when there is room for none."""
        room = available_bytes - self.base_bytes
        if room < 0 or self.load_bytes > available_bytes:
            return 0
        short = room // (self.kv_bytes_per_token + self.prompt_bytes_per_token)
        if short < prompt_tokens:
            return short
        return (room - prompt_tokens * self.prompt_bytes_per_token) // self.kv_bytes_per_token


@dataclass(frozen=True)
class _Matrix:
    """All weights of one kind: their number, and the bits of each."""

    parameters: float
    bits: float
    block_size: int | None
    symmetric: bool

    @property
    def packed_bytes(self) -> float:
        return self.parameters * self.bits / 8

    @property
    def blocks(self) -> float:
        return self.parameters / self.block_size if self.block_size else 0.0

    def scale_bytes(self, float_bytes: int) -> float:
        """Scales and zero points, as they stand in the file."""
        return self.blocks * (float_bytes + (0.0 if self.symmetric else self.bits / 8))

    def file_bytes(self, float_bytes: int) -> float:
        return self.packed_bytes + self.scale_bytes(float_bytes)


def footprint(shape: ModelShape, recipe: Recipe, provider: str) -> Footprint:
    """The footprint of `shape` built by `recipe` for `provider`."""
    float_bytes = float_bytes_of(recipe, provider)
    matrices = list(_matrices(shape, recipe))
    embedding = _embedding(shape, recipe, float_bytes)
    weights = sum(matrix.file_bytes(float_bytes) for matrix in (*matrices, embedding))
    rotary = _rotary_bytes(shape, float_bytes)
    weights += shape.norm_parameters * float_bytes + rotary
    read = sum(_read_bytes(matrix, recipe, float_bytes) for matrix in matrices)
    if provider == "cuda":
        resident, runtime = weights, _RUNTIME_BYTES + _CUDA_BYTES
    else:
        resident, runtime = sum(_held_bytes(matrix, recipe) for matrix in matrices) + rotary, _RUNTIME_BYTES
    base = resident + runtime
    return Footprint(
        bundle_bytes=round(weights) + _small_files_bytes(shape),
        base_bytes=round(base),
        # While the largest matrix, the head, is repacked, it is there twice.
        load_bytes=round(base + max(matrix.packed_bytes for matrix in _head(shape, recipe))),
        kv_bytes_per_token=kv_bytes_per_token(shape, recipe, provider),
        prompt_bytes_per_token=_prompt_bytes(shape, recipe, float_bytes),
        read_bytes_per_token=round(read),
        prompt_ops_per_token=round(2 * shape.linear_parameters * _cost(recipe, provider)),
        attention_ops=round(4 * shape.layers * shape.heads * shape.head_dim * _float_cost(provider)),
        step_s=_LAYER_S * shape.layers,
    )


def float_bytes_of(recipe: Recipe, provider: str) -> int:
    """Bytes of a value that isn't quantized (scales, norms, the token table, activations): CUDA's are 16-bit floats."""
    return 2 if provider == "cuda" and recipe.bits != 32 else 4


def kv_bytes_per_token(shape: ModelShape, recipe: Recipe, provider: str) -> int:
    """Keys and values of one token in all layers."""
    value_bytes = recipe.kv_cache_bits // 8 if recipe.kv_cache_bits else float_bytes_of(recipe, provider)
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * value_bytes


def _matrices(shape: ModelShape, recipe: Recipe) -> Iterator[_Matrix]:
    """The layers' projections and the head."""
    head = shape.vocab * shape.hidden
    layers = shape.linear_parameters - head
    if recipe.mixed is None:
        yield _matrix(recipe, layers, recipe.bits)
    elif recipe.mixed.share is None:
        raised = _raised_parameters(shape, attention=recipe.mixed.method == "kquant-mixed")
        yield _matrix(recipe, raised, recipe.mixed.bits)
        yield _matrix(recipe, layers - raised, recipe.bits)
    else:
        changed = _ranked_parameters(shape, recipe.mixed)
        yield _matrix(recipe, changed, recipe.mixed.bits)
        yield _matrix(recipe, layers - changed, recipe.bits)
    yield from _head(shape, recipe)


def _head(shape: ModelShape, recipe: Recipe) -> Iterator[_Matrix]:
    by_place = recipe.mixed is not None and recipe.mixed.share is None
    yield _matrix(recipe, shape.vocab * shape.hidden, recipe.head_bits or (8 if by_place else recipe.bits))


def _matrix(recipe: Recipe, parameters: float, bits: float) -> _Matrix:
    return _Matrix(parameters, bits, recipe.block_size, recipe.symmetric)


def _ranked_parameters(shape: ModelShape, mixed: MixedPrecision) -> float:
    """The number of weights that get the other bits; only the weights' values decide which ones do.

    Olive gives matrices (four a layer, and the head) more bits one by one until their share is reached: half a matrix
    more than asked for, on average.
    """
    half = shape.linear_parameters / (4 * shape.layers + 1) / 2
    wanted = (mixed.share or 0.0) * shape.linear_parameters
    return wanted + half if mixed.bits == 8 else max(0.0, wanted - half)


def _raised_parameters(shape: ModelShape, *, attention: bool) -> int:
    """The weights that Olive gives more bits by llama.cpp's rule: down projections, with `attention` its inputs too."""
    each = shape.hidden * shape.intermediate
    if attention:
        each += shape.hidden * shape.head_dim * (shape.heads + 2 * shape.kv_heads)
    count = shape.layers
    chosen = [i for i in range(count) if i < count / 8 or i >= 7 * count / 8 or (i - count // 8) % 3 == 2]
    return len(chosen) * each


def _embedding(shape: ModelShape, recipe: Recipe, float_bytes: int) -> _Matrix:
    if recipe.quantize_embedding:
        return _matrix(recipe, shape.embedding_parameters, recipe.bits)
    return _Matrix(shape.embedding_parameters, 8 * float_bytes, None, symmetric=True)


def _held_bytes(matrix: _Matrix, recipe: Recipe) -> float:
    """A matrix in the memory of a CPU: repacked, with the file's scales beside it."""
    held = matrix.packed_bytes + matrix.scale_bytes(4)
    # A copy of the scales, and the sums of the blocks.
    return held + matrix.blocks * 8 if recipe.accuracy_level == 4 else held


def _read_bytes(matrix: _Matrix, recipe: Recipe, float_bytes: int) -> float:
    sums = matrix.blocks * 4 if recipe.accuracy_level == 4 and float_bytes == 4 else 0
    return matrix.packed_bytes + matrix.blocks * float_bytes + sums


def _rotary_bytes(shape: ModelShape, float_bytes: int) -> int:
    """Tables of sines and cosines for every position; LongRoPE has a second pair for short texts."""
    positions = shape.max_context + (shape.original_context if shape.rope != "default" else 0)
    return positions * shape.rotary_dim * float_bytes


def _prompt_bytes(shape: ModelShape, recipe: Recipe, float_bytes: int) -> int:
    logits = 0 if recipe.prune_lm_head else _LOGIT_COPIES * 4 * shape.vocab
    return logits + float_bytes * (_WIDE_VECTORS * shape.intermediate + _HIDDEN_VECTORS * shape.hidden)


def _cost(recipe: Recipe, provider: str) -> float:
    """The time of an operation, as a multiple of an int8 one with endless blocks; GPUs compute in 16-bit floats."""
    if provider == "cuda" or recipe.block_size is None or recipe.accuracy_level != 4:
        return _float_cost(provider)
    return block_cost(recipe.block_size)


def _float_cost(provider: str) -> float:
    return 1.0 if provider == "cuda" else _FLOAT_COST


def block_cost(block_size: int) -> float:
    """The time of an int8 product in blocks of that size, as a multiple of that in endless ones."""
    return 1 + _BLOCK_COST / block_size


def _small_files_bytes(shape: ModelShape) -> int:
    """Graph, tokenizer, configuration."""
    return _GRAPH_BYTES + _GRAPH_BYTES_PER_LAYER * shape.layers + _TOKENIZER_BYTES_PER_TOKEN * shape.vocab
