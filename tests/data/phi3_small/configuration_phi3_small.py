"""Configuration of a Phi-3-small, field by field as in the published config.json."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class Phi3SmallConfig(PreTrainedConfig):
    model_type = "phi3small"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (transformers' own way)

    def __init__(
        self,
        vocab_size: int = 100352,
        max_position_embeddings: int = 8192,
        hidden_size: int = 4096,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int = 8,
        ff_intermediate_size: int = 14336,
        gegelu_limit: float = 20.0,
        layer_norm_epsilon: float = 1e-5,
        rope_embedding_base: float = 1_000_000.0,
        rope_position_scale: float = 1.0,
        mup_use_scaling: bool = True,
        mup_attn_multiplier: float = 1.0,
        mup_embedding_multiplier: float = 10.0,
        mup_width_multiplier: float = 8.0,
        dense_attention_every_n_layers: int = 2,
        blocksparse_block_size: int = 64,
        blocksparse_num_local_blocks: int = 16,
        blocksparse_vert_stride: int = 8,
        blocksparse_homo_head_pattern: bool = False,
        tie_word_embeddings: bool = True,
        **rest: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.original_max_position_embeddings = max_position_embeddings
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.ff_intermediate_size = ff_intermediate_size
        # Runtimes look for the feed-forward size under this name.
        self.intermediate_size = ff_intermediate_size
        self.gegelu_limit = gegelu_limit
        self.layer_norm_epsilon = layer_norm_epsilon
        self.rope_embedding_base = rope_embedding_base
        self.rope_position_scale = rope_position_scale
        self.mup_use_scaling = mup_use_scaling
        self.mup_attn_multiplier = mup_attn_multiplier
        self.mup_embedding_multiplier = mup_embedding_multiplier
        self.mup_width_multiplier = mup_width_multiplier
        self.dense_attention_every_n_layers = dense_attention_every_n_layers
        self.blocksparse_block_size = blocksparse_block_size
        self.blocksparse_num_local_blocks = blocksparse_num_local_blocks
        self.blocksparse_vert_stride = blocksparse_vert_stride
        self.blocksparse_homo_head_pattern = blocksparse_homo_head_pattern
        rest.pop("original_max_position_embeddings", None)
        rest.pop("intermediate_size", None)
        super().__init__(tie_word_embeddings=tie_word_embeddings, **rest)
