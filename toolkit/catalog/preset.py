"""Published Phi-3 shapes as data, so that a model of any size can be synthesized, planned and tested offline.

Values are those of each model's ``config.json`` on the hub (as mirrored in dotnet/machinelearning, folder
``src/Microsoft.ML.GenAI.Phi/Resource/Config``; for phi-3-small, phi-3.5-mini and phi-4-mini as published in
their repositories). The ``sliding_window`` values look odd beside the context lengths and are kept as
published: runtimes read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from toolkit.errors import ConfigError

Architecture = Literal["Phi3ForCausalLM", "Phi3SmallForCausalLM"]

# Ids of the added tokens in every 32,064-entry Phi-3 vocabulary; the gaps are <|placeholderN|>.
PHI3_TOKEN_IDS: Mapping[str, int] = {
    "<|endoftext|>": 32000,
    "<|assistant|>": 32001,
    "<|placeholder1|>": 32002,
    "<|placeholder2|>": 32003,
    "<|placeholder3|>": 32004,
    "<|placeholder4|>": 32005,
    "<|system|>": 32006,
    "<|end|>": 32007,
    "<|placeholder5|>": 32008,
    "<|placeholder6|>": 32009,
    "<|user|>": 32010,
}

# phi-3-small speaks a tiktoken vocabulary; its config fixes <|endoftext|>, the others follow it here.
PHI3_SMALL_TOKEN_IDS: Mapping[str, int] = {
    "<|endoftext|>": 100257,
    "<|assistant|>": 100258,
    "<|system|>": 100259,
    "<|end|>": 100260,
    "<|user|>": 100261,
}

# phi-4-mini's vocabulary has 200,064 entries and no token to begin with; its answers end with <|end|>.
PHI4_TOKEN_IDS: Mapping[str, int] = {
    "<|endoftext|>": 199999,
    "<|assistant|>": 200019,
    "<|end|>": 200020,
    "<|user|>": 200021,
    "<|system|>": 200022,
}

TINY_TOKEN_IDS: Mapping[str, int] = {
    "<|endoftext|>": 3200,
    "<|assistant|>": 3201,
    "<|system|>": 3202,
    "<|end|>": 3203,
    "<|user|>": 3204,
}


@dataclass(frozen=True)
class Preset:
    """One model's shape. Sizes count elements, contexts count tokens; ``hub_id`` is None for our own shapes.

    ``short_factor`` and ``long_factor`` are LongRoPE's lists, one value per rotary frequency (``rotary_dim /
    2``), or empty. ``token_ids`` maps the added tokens to their ids; ``begin_token`` is the one that a text
    begins with, None for id 1 (``<s>``), and ``end_token`` the one that ends it.
    """

    name: str
    hub_id: str | None
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    context_length: int
    original_context_length: int
    token_ids: Mapping[str, int]
    sliding_window: int | None = None
    rope_theta: float = 10_000.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    tied_embeddings: bool = False
    partial_rotary_factor: float = 1.0
    begin_token: str | None = None
    end_token: str = "<|endoftext|>"
    architecture: Architecture = "Phi3ForCausalLM"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def rotary_dim(self) -> int:
        """How many of a head's elements are rotated; the rest knows no position."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def qkv_width(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def parameters(self) -> int:
        """Weights and biases, counting a tied head once."""
        matrices = self.hidden_size * (self.qkv_width + self.hidden_size + 3 * self.intermediate_size)
        vectors, final = 2 * self.hidden_size, self.hidden_size
        if self.architecture == "Phi3SmallForCausalLM":  # LayerNorm and every projection have biases
            vectors = 2 * vectors + self.qkv_width + 2 * self.hidden_size + 2 * self.intermediate_size
            final = 2 * final
        tables = (1 if self.tied_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.layers * (matrices + vectors) + final + tables

    def cut(self, layers: int | None) -> Preset:
        """The same shape with only the first ``layers`` layers; all of them for None.

        Raises ConfigError when there aren't that many.
        """
        if layers is None:
            return self
        if not 1 <= layers <= self.layers:
            raise ConfigError(
                f"{self.name} can't be cut to {layers} layers",
                f"choose between 1 and {self.layers}",
            )
        return replace(self, layers=layers)

    def config(self) -> dict[str, object]:
        """The model's ``config.json``."""
        end_of_text = self.token_ids["<|endoftext|>"]
        common: dict[str, object] = {
            "architectures": [self.architecture],
            "attention_bias": False,
            "bos_token_id": self.token_ids[self.begin_token] if self.begin_token else 1,
            "eos_token_id": self.token_ids[self.end_token],
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "max_position_embeddings": self.context_length,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "pad_token_id": end_of_text,
            "tie_word_embeddings": self.tied_embeddings,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }
        own = _phi3_small_fields(self) if self.architecture == "Phi3SmallForCausalLM" else _phi3_fields(self)
        return dict(sorted((common | own).items()))


def _phi3_fields(preset: Preset) -> dict[str, object]:
    scaling: dict[str, object] | None = None
    if preset.long_factor:
        scaling = {
            "long_factor": list(preset.long_factor),
            "short_factor": list(preset.short_factor),
            "type": "longrope",
        }
    fields: dict[str, object] = {
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "hidden_act": "silu",
        "intermediate_size": preset.intermediate_size,
        "model_type": "phi3",
        "original_max_position_embeddings": preset.original_context_length,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": scaling,
        "rope_theta": preset.rope_theta,
        "sliding_window": preset.sliding_window,
    }
    if preset.partial_rotary_factor != 1:
        fields["partial_rotary_factor"] = preset.partial_rotary_factor
    return fields


def _phi3_small_fields(preset: Preset) -> dict[str, object]:
    return {
        "attention_dropout_prob": 0.0,
        "blocksparse_block_size": 64,
        "blocksparse_homo_head_pattern": False,
        "blocksparse_num_local_blocks": 16,
        "blocksparse_triton_kernel_block_size": 64,
        "blocksparse_vert_stride": 8,
        "dense_attention_every_n_layers": 2,
        "embedding_dropout_prob": 0.1,
        "ff_dim_multiplier": None,
        "ff_intermediate_size": preset.intermediate_size,
        "ffn_dropout_prob": 0.1,
        "gegelu_limit": 20.0,
        "gegelu_pad_to_256": True,
        "hidden_act": "gegelu",
        "layer_norm_epsilon": 1e-05,
        "model_type": "phi3small",
        "mup_attn_multiplier": 1.0,
        "mup_embedding_multiplier": 10.0,
        "mup_use_scaling": True,
        "mup_width_multiplier": 8.0,
        "pad_sequence_to_multiple_of_64": True,
        "reorder_and_upcast_attn": False,
        "rope_embedding_base": int(preset.rope_theta),
        "rope_position_scale": 1.0,
    }


# microsoft/Phi-3-mini-128k-instruct, config.json of the first release (its type was still called "su").
# Printed there with float32 noise; rounded here, as in the lists below, to the decimals that were meant.
# fmt: off
_MINI_LONG_FACTOR = (
    1.03, 1.05, 1.05, 1.08, 1.23, 1.23, 1.3, 1.45, 1.6, 1.65, 1.9, 2.86, 3.69, 5.42, 5.49, 5.49, 9.09,
    11.58, 15.66, 15.77, 15.79, 18.36, 21.99, 23.08, 30.01, 32.35, 32.59, 35.56, 39.95, 53.84, 56.2,
    57.95, 59.29, 59.77, 59.92, 61.19, 61.96, 62.5, 63.37, 63.48, 63.48, 63.66, 63.85, 64.08, 64.76,
    64.8, 64.81, 64.81,
)
_MINI_SHORT_FACTOR = (
    1.05, 1.05, 1.05, 1.1, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0,
    2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.05, 2.05, 2.05, 2.1, 2.1, 2.1,
    2.15, 2.15, 2.35, 2.55, 2.6, 2.6, 2.75, 2.85, 2.85, 2.95,
)
_MEDIUM_LONG_FACTOR = (
    1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.25, 1.25, 1.5, 2.0, 2.75, 5.75,
    5.75, 6.5, 9.25, 11.0, 13.25, 19.25, 19.75, 19.75, 21.25, 21.5, 26.5, 30.0, 33.75, 35.25, 38.5, 42.0,
    42.25, 46.0, 47.0, 50.0, 50.5, 51.0, 52.0, 52.75, 53.75, 54.75, 57.0, 57.25, 58.5, 59.25, 59.5, 62.0,
    62.5, 62.75, 63.25, 63.25, 63.25, 63.75, 64.0, 64.0, 64.25, 64.5, 64.5, 65.0, 65.0,
)
_MEDIUM_SHORT_FACTOR = (
    1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.01, 1.02, 1.02, 1.04, 1.04, 1.07, 1.07, 1.1, 1.3, 1.3, 1.5, 1.57, 1.9,
    2.31, 2.76, 3.39, 3.94, 4.01, 4.29, 4.35, 5.35, 6.66, 7.03, 7.52, 8.01, 8.25, 8.28, 9.63, 9.9, 10.59,
    11.05, 11.79, 12.19, 12.89, 13.13, 13.17, 13.21, 13.48, 13.54, 13.78, 13.93, 14.43, 14.76, 15.15,
    15.42, 15.54, 15.66, 15.75, 15.76, 15.8, 16.06, 16.08, 16.12, 16.12, 16.19, 16.32, 16.54, 16.8,
)
_3_5_MINI_LONG_FACTOR = (
    1.08, 1.11, 1.14, 1.34, 1.59, 1.6, 1.62, 2.62, 3.23, 3.23, 4.79, 7.4, 7.7, 9.09, 12.2, 17.67, 24.46,
    28.57, 30.42, 30.84, 32.59, 32.93, 42.32, 44.96, 50.34, 50.45, 57.55, 57.93, 58.21, 60.14, 62.61,
    62.62, 62.71, 63.14, 63.14, 63.77, 63.93, 63.96, 63.97, 64.03, 64.07, 64.08, 64.12, 64.41, 64.48,
    64.51, 64.53, 64.84,
)
_3_5_MINI_SHORT_FACTOR = (
    1.0, 1.02, 1.03, 1.03, 1.05, 1.05, 1.05, 1.05, 1.05, 1.07, 1.1, 1.11, 1.16, 1.16, 1.17, 1.29, 1.34,
    1.68, 1.79, 1.82, 1.85, 1.88, 1.91, 1.94, 1.99, 2.02, 2.02, 2.02, 2.02, 2.02, 2.02, 2.03, 2.03, 2.03,
    2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.08, 2.09, 2.19, 2.22, 2.59, 2.73, 2.75, 2.84,
)
_4_MINI_LONG_FACTOR = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533,
    5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651,
    14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1,
    32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)
# fmt: on

# 3,821,079,552 parameters: the hub's count for the published safetensors files ("3.82B").
PHI_3_MINI_4K = Preset(
    name="phi-3-mini-4k",
    hub_id="microsoft/Phi-3-mini-4k-instruct",
    hidden_size=3072,
    intermediate_size=8192,
    layers=32,
    heads=32,
    kv_heads=32,
    vocab_size=32064,
    context_length=4096,
    original_context_length=4096,
    sliding_window=2047,
    token_ids=PHI3_TOKEN_IDS,
)

# The same weights' shape as the 4k model; only the positions differ.
PHI_3_MINI_128K = replace(
    PHI_3_MINI_4K,
    name="phi-3-mini-128k",
    hub_id="microsoft/Phi-3-mini-128k-instruct",
    context_length=131072,
    sliding_window=262144,
    short_factor=_MINI_SHORT_FACTOR,
    long_factor=_MINI_LONG_FACTOR,
)

# 7,392,272,384 parameters ("7.39B" on the hub, the head is the embedding).
PHI_3_SMALL_8K = Preset(
    name="phi-3-small-8k",
    hub_id="microsoft/Phi-3-small-8k-instruct",
    hidden_size=4096,
    intermediate_size=14336,
    layers=32,
    heads=32,
    kv_heads=8,
    vocab_size=100352,
    context_length=8192,
    original_context_length=8192,
    rope_theta=1_000_000.0,
    tied_embeddings=True,
    begin_token="<|endoftext|>",
    architecture="Phi3SmallForCausalLM",
    token_ids=PHI3_SMALL_TOKEN_IDS,
)

# 13,960,238,080 parameters ("14B" on the hub).
PHI_3_MEDIUM_4K = Preset(
    name="phi-3-medium-4k",
    hub_id="microsoft/Phi-3-medium-4k-instruct",
    hidden_size=5120,
    intermediate_size=17920,
    layers=40,
    heads=40,
    kv_heads=10,
    vocab_size=32064,
    context_length=4096,
    original_context_length=4096,
    sliding_window=2047,
    token_ids=PHI3_TOKEN_IDS,
)

PHI_3_MEDIUM_128K = replace(
    PHI_3_MEDIUM_4K,
    name="phi-3-medium-128k",
    hub_id="microsoft/Phi-3-medium-128k-instruct",
    context_length=131072,
    sliding_window=131072,
    short_factor=_MEDIUM_SHORT_FACTOR,
    long_factor=_MEDIUM_LONG_FACTOR,
)

# The shape of phi-3-mini-128k with other frequencies.
PHI_3_5_MINI = replace(
    PHI_3_MINI_128K,
    name="phi-3.5-mini",
    hub_id="microsoft/Phi-3.5-mini-instruct",
    short_factor=_3_5_MINI_SHORT_FACTOR,
    long_factor=_3_5_MINI_LONG_FACTOR,
)

# 3,836,021,760 parameters ("3.84B" on the hub, the head is the embedding).
PHI_4_MINI = Preset(
    name="phi-4-mini",
    hub_id="microsoft/Phi-4-mini-instruct",
    hidden_size=3072,
    intermediate_size=8192,
    layers=32,
    heads=24,
    kv_heads=8,
    vocab_size=200064,
    context_length=131072,
    original_context_length=4096,
    sliding_window=262144,
    short_factor=(1.0,) * 48,
    long_factor=_4_MINI_LONG_FACTOR,
    tied_embeddings=True,
    partial_rotary_factor=0.75,
    begin_token="<|endoftext|>",
    end_token="<|end|>",
    token_ids=PHI4_TOKEN_IDS,
)

# Ours, for tests: everything divisible by 128, so that every block size applies.
PHI_3_TINY_GQA = Preset(
    name="phi-3-tiny-gqa",
    hub_id=None,
    hidden_size=256,
    intermediate_size=640,
    layers=2,
    heads=4,
    kv_heads=2,
    vocab_size=3328,
    context_length=1024,
    original_context_length=1024,
    token_ids=TINY_TOKEN_IDS,
)

# As phi-3-mini-4k: every head has its own keys, and sees a window shorter than the context.
PHI_3_TINY = replace(PHI_3_TINY_GQA, name="phi-3-tiny", kv_heads=4, sliding_window=127)

PHI_3_TINY_LONGROPE = replace(
    PHI_3_TINY_GQA,
    name="phi-3-tiny-longrope",
    kv_heads=4,
    context_length=4096,
    original_context_length=256,
    # Rising from 1 as the published lists do; 32 rotary frequencies for heads of 64.
    short_factor=tuple(1.0 + index / 32 for index in range(32)),
    long_factor=tuple(1.0 + index / 2 for index in range(32)),
)

PHI_3_TINY_GQA_LONGROPE = replace(PHI_3_TINY_LONGROPE, name="phi-3-tiny-gqa-longrope", kv_heads=2)

# phi-3.5-mini differs from phi-3-mini-128k in its frequencies alone, and so do these two: more than one list
# has to survive the way into a bundle.
PHI_3_5_TINY = replace(
    PHI_3_TINY_LONGROPE,
    name="phi-3.5-tiny",
    short_factor=tuple(1.0 + index / 16 for index in range(32)),
    long_factor=tuple(1.1**index for index in range(32)),
)

PHI_4_TINY = replace(
    PHI_3_TINY_GQA,
    name="phi-4-tiny",
    context_length=4096,
    original_context_length=256,
    # 24 rotary frequencies: three quarters of heads of 64 are rotated.
    short_factor=(1.0,) * 24,
    long_factor=tuple(1.15**index for index in range(24)),
    tied_embeddings=True,
    partial_rotary_factor=0.75,
    begin_token="<|endoftext|>",
    end_token="<|end|>",
)

PHI_3_SMALL_TINY = replace(
    PHI_3_TINY_GQA,
    name="phi-3-small-tiny",
    layers=4,
    context_length=2048,
    original_context_length=2048,
    rope_theta=1_000_000.0,
    tied_embeddings=True,
    begin_token="<|endoftext|>",
    architecture="Phi3SmallForCausalLM",
)

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        PHI_3_MINI_4K,
        PHI_3_MINI_128K,
        PHI_3_SMALL_8K,
        PHI_3_MEDIUM_4K,
        PHI_3_MEDIUM_128K,
        PHI_3_5_MINI,
        PHI_4_MINI,
        PHI_3_TINY,
        PHI_3_TINY_GQA,
        PHI_3_TINY_LONGROPE,
        PHI_3_TINY_GQA_LONGROPE,
        PHI_3_5_TINY,
        PHI_4_TINY,
        PHI_3_SMALL_TINY,
    )
}

# Published architecture -> the test shape that has all its peculiarities at a size that builds in seconds.
STAND_INS: Mapping[str, str] = {
    "phi-3-mini-4k": "phi-3-tiny",
    "phi-3-mini-128k": "phi-3-tiny-longrope",
    "phi-3-small-8k": "phi-3-small-tiny",
    "phi-3-medium-4k": "phi-3-tiny-gqa",
    "phi-3-medium-128k": "phi-3-tiny-gqa-longrope",
    "phi-3.5-mini": "phi-3.5-tiny",
    "phi-4-mini": "phi-4-tiny",
}


def preset(name: str) -> Preset:
    """The preset called ``name``; ConfigError if there is none."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"no preset is called {name!r}", f"choose one of {', '.join(PRESETS)}") from None
