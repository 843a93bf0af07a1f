"""Phi-3-small in plain torch: the same computation as the published code, without its GPU kernels.

Block-sparse attention (every n-th layer is dense), GEGELU, muP scaling, LayerNorm and biases everywhere, tied
head. It is written for comparison: the sparse pattern becomes a mask, and every text begins at position 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_phi3_small import Phi3SmallConfig


def gegelu(x: Tensor, limit: float) -> Tensor:
    """Even columns go through a quick GELU and gate the odd ones."""
    gate, linear = x[..., ::2].clamp(max=limit), x[..., 1::2].clamp(min=-limit, max=limit)
    return gate * torch.sigmoid(1.702 * gate) * (linear + 1)


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotary embedding of heads (…, tokens, head_dim), halves paired."""
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = positions[:, None].float() * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def block_mask(config: Phi3SmallConfig, tokens: int) -> Tensor:
    """The mask of blocks of keys that each block of queries sees: (heads, tokens, tokens), without causality.

    A block sees the nearest blocks, and every n-th one, whose offset differs from head to head.
    """
    blocks = -(-tokens // config.blocksparse_block_size)
    step = max(1, config.blocksparse_vert_stride // config.num_attention_heads)
    heads = torch.arange(config.num_attention_heads)
    offsets = torch.zeros_like(heads) if config.blocksparse_homo_head_pattern else heads * step
    query, key = torch.arange(blocks)[:, None], torch.arange(blocks)[None]
    strided = (key + offsets[:, None, None] + 1) % config.blocksparse_vert_stride == 0
    seen = (query - key < config.blocksparse_num_local_blocks) | strided
    size = config.blocksparse_block_size
    return seen.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, :tokens, :tokens]


class Phi3SmallMLP(nn.Module):
    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.limit = config.gegelu_limit
        self.up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gegelu(self.up_proj(x), self.limit))


class Phi3SmallSelfAttention(nn.Module):
    def __init__(self, config: Phi3SmallConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.heads
        self.scale = config.mup_attn_multiplier / self.head_dim if config.mup_use_scaling else self.head_dim**-0.5
        every = config.dense_attention_every_n_layers
        self.sparse = not every or (layer + 1) % every != 0
        width = (self.heads + 2 * self.groups) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, width)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, cache: Cache | None, positions: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        # Rows of the projection: for each group its queries, then its key, then its value.
        mixed = self.query_key_value(x).view(batch, tokens, self.groups, -1, self.head_dim)
        query, key, value = (part.flatten(2, 3).transpose(1, 2) for part in mixed.split([mixed.shape[3] - 2, 1, 1], 3))
        base = self.config.rope_embedding_base
        query, key = rotate(query, positions, base), rotate(key, positions, base)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        key, value = (part.repeat_interleave(self.heads // self.groups, 1) for part in (key, value))
        total = key.shape[2]
        seen = positions[:, None] >= torch.arange(total)[None]
        if self.sparse:
            seen = seen & block_mask(self.config, total)[:, -tokens:]
        scores = (query @ key.transpose(2, 3) * self.scale).masked_fill(~seen, float("-inf"))
        mixed = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
        return self.dense(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Phi3SmallDecoderLayer(nn.Module):
    def __init__(self, config: Phi3SmallConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Phi3SmallSelfAttention(config, layer)
        self.mlp = Phi3SmallMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def forward(self, x: Tensor, cache: Cache | None = None, positions: Tensor | None = None, **_: Any) -> Tensor:
        assert positions is not None
        x = x + self.self_attn(self.input_layernorm(x), cache, positions)
        return x + self.mlp(self.post_attention_layernorm(x))


class Phi3SmallPreTrainedModel(PreTrainedModel):
    config_class = Phi3SmallConfig
    base_model_prefix = "model"
    _no_split_modules = ["Phi3SmallDecoderLayer"]  # noqa: RUF012  (transformers' own way)


class Phi3SmallModel(Phi3SmallPreTrainedModel):
    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Phi3SmallDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.post_init()

    def forward(self, input_ids: Tensor, past_key_values: Cache | None = None, **_: Any) -> Tensor:
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions = torch.arange(past, past + input_ids.shape[1])
        x = self.embed_tokens(input_ids) * self.config.mup_embedding_multiplier
        for layer in self.layers:
            x = layer(x, cache=past_key_values, positions=positions)
        return self.final_layernorm(x)


class Phi3SmallForCausalLM(Phi3SmallPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  (transformers' own way)

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__(config)
        self.model = Phi3SmallModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        logits = self.lm_head(self.model(input_ids, past_key_values)) / self.config.mup_width_multiplier
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)
