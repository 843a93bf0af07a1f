"""Published Phi-3 shapes as data, so that a model of any size can be synthesized, planned and tested offline.

Values are those of each model's ``config.json`` on the hub (as mirrored in dotnet/machinelearning, folder
``src/Microsoft.ML.GenAI.Phi/Resource/Config``, and, for phi-3-small, as published in
microsoft/Phi-3-small-8k-instruct). The ``sliding_window`` values look odd beside the context lengths and are
kept as published: runtimes read them.
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

    ``short_factor`` and ``long_factor`` are LongRoPE's lists, one value per rotary frequency (``head_dim /
    2``), or empty. ``token_ids`` maps the added tokens to their ids.
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
    architecture: Architecture = "Phi3ForCausalLM"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

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
            "bos_token_id": 1,
            "eos_token_id": end_of_text,
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
    return {
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


def _phi3_small_fields(preset: Preset) -> dict[str, object]:
    return {
        "attention_dropout_prob": 0.0,
        "blocksparse_block_size": 64,
        "blocksparse_homo_head_pattern": False,
        "blocksparse_num_local_blocks": 16,
        "blocksparse_triton_kernel_block_size": 64,
        "blocksparse_vert_stride": 8,
        # The published file says 100257, the id of <|endoftext|>: this vocabulary has no token to begin with.
        "bos_token_id": preset.token_ids["<|endoftext|>"],
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
# Printed there with float32 noise; rounded here to the two decimals that were meant.
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

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        PHI_3_MINI_4K,
        PHI_3_MINI_128K,
        PHI_3_SMALL_8K,
        PHI_3_MEDIUM_4K,
        PHI_3_TINY_GQA,
        PHI_3_TINY_LONGROPE,
    )
}


def preset(name: str) -> Preset:
    """The preset called ``name``; ConfigError if there is none."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"no preset is called {name!r}", f"choose one of {', '.join(PRESETS)}") from None
