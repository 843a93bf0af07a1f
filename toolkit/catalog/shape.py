"""The shape of a Phi-3: the numbers of config.json that decide its size, read without running any code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from toolkit.catalog.record import OpenRecord
from toolkit.config import shown
from toolkit.errors import ConfigError
from toolkit.untrusted import read_json_file, reason

SUPPORTED = ("Phi3ForCausalLM",)
# Transformers has no code for these: theirs comes with the model, and runs only when it is trusted.
REMOTE_CODE = ("Phi3SmallForCausalLM",)
# Far beyond every published shape: a larger number is a mistake, and plans count up to these.
_MOST_LAYERS, _WIDEST, _MOST_TOKENS = 1 << 12, 1 << 24, 1 << 30


class ModelShape(OpenRecord):
    """The numbers of config.json that decide a model's size; lengths in elements, contexts in tokens."""

    architecture: str
    layers: int = Field(ge=1, le=_MOST_LAYERS)
    hidden: int = Field(ge=1, le=_WIDEST)
    heads: int = Field(ge=1, le=_WIDEST)
    kv_heads: int = Field(ge=1, le=_WIDEST)
    head_dim: int = Field(ge=1, le=_WIDEST)
    intermediate: int = Field(ge=1, le=_WIDEST)
    vocab: int = Field(ge=1, le=_MOST_TOKENS)
    max_context: int = Field(ge=1, le=_MOST_TOKENS)
    original_context: int = Field(ge=1, le=_MOST_TOKENS)
    rope: str = Field(max_length=100)
    rotary_dim: int = Field(ge=1, le=_WIDEST)
    tied_embeddings: bool

    @property
    def needs_remote_code(self) -> bool:
        return self.architecture in REMOTE_CODE

    @property
    def embedding_parameters(self) -> int:
        """The table that turns tokens into vectors, without the output head."""
        return self.vocab * self.hidden

    @property
    def linear_parameters(self) -> int:
        """Every matrix that a recipe quantizes: the layers' projections and the output head."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlp = 3 * self.hidden * self.intermediate
        return self.layers * (attention + mlp) + self.vocab * self.hidden

    @property
    def norm_parameters(self) -> int:
        """The parameters that stay floats beside the embedding: norms, and biases of an architecture that has them."""
        norms = (2 * self.layers + 1) * self.hidden
        if not self.needs_remote_code:
            return norms
        attention = (self.heads + 2 * self.kv_heads) * self.head_dim + self.hidden
        return 2 * norms + self.layers * (attention + 2 * self.intermediate + self.hidden)

    @property
    def parameters(self) -> int:
        """All weights, a tied output head counted once."""
        tied = self.embedding_parameters if self.tied_embeddings else 0
        return self.embedding_parameters + self.linear_parameters + self.norm_parameters - tied


def parse_shape(config: dict[str, Any], where: str) -> ModelShape:
    """Read the shape out of a parsed config.json, in the layout of transformers 4 or 5. No code is run for it.

    Raises ConfigError for another architecture, an already quantized model, and missing or senseless numbers.
    """
    architecture = _architecture(config, where)
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "an unknown method") if isinstance(quantization, dict) else "?"
        message = f"{where}: the model is already quantized ({method})"
        raise ConfigError(message, "give the original bf16, fp16 or fp32 model")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"{where}: rope_scaling: not an object")
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    numbers = isinstance(heads, int) and isinstance(hidden, int) and heads > 0
    head_dim = config.get("head_dim") or (hidden // heads if numbers else None)  # type: ignore[operator]
    max_context = config.get("max_position_embeddings")
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    fields = {
        "architecture": architecture,
        "layers": config.get("num_hidden_layers"),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "intermediate": config.get("intermediate_size") or config.get("ff_intermediate_size"),
        "vocab": config.get("vocab_size"),
        "max_context": max_context,
        "original_context": original or max_context,
        "rope": rope.get("rope_type") or rope.get("type") or "default",
        "rotary_dim": _rotary_dim(head_dim, config.get("partial_rotary_factor") or rope.get("partial_rotary_factor")),
        "tied_embeddings": bool(config.get("tie_word_embeddings")),
    }
    try:
        return ModelShape.model_validate(fields)
    except ValidationError as exc:
        wrong = ", ".join(sorted({str(error["loc"][0]) for error in exc.errors()}))
        raise ConfigError(f"{where}: missing or not a positive whole number: {wrong}") from exc


def _rotary_dim(head_dim: object, partial_rotary_factor: object) -> object:
    """The number of a head's elements that are rotated: all of them unless the configuration names a share."""
    if isinstance(head_dim, int) and isinstance(partial_rotary_factor, (int, float)) and head_dim <= _WIDEST:
        return int(head_dim * partial_rotary_factor)
    return head_dim


def _architecture(config: dict[str, Any], where: str) -> str:
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else "none"
    if name in SUPPORTED + REMOTE_CODE:
        return name
    supported = ", ".join(SUPPORTED + REMOTE_CODE)
    raise ConfigError(f"{where}: architecture '{name}' isn't supported", f"supported: {supported}")


def read_shape(config: Path, where: str) -> ModelShape:
    """The shape that a config.json describes; `where` names the model in errors. Raises ConfigError."""
    if not config.is_file():
        raise ConfigError(f"{where}: not a model folder: no config.json", "only that file is read for a plan")
    return parse_shape(read_config(config), where)


def read_config(path: Path) -> dict[str, Any]:
    try:
        value = read_json_file(path, controls=True)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{shown(path)}: not valid JSON: {reason(exc)}") from exc
    if not isinstance(value, dict):
        raise ConfigError(f"{shown(path)}: not a JSON object")
    return value
