"""The shape of a Phi-3: the numbers of config.json that decide its size, read without running any code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from toolkit.catalog.record import OpenRecord
from toolkit.catalog.rope import HEAD_MULTIPLE, parse_rope, written_out
from toolkit.config import shown
from toolkit.errors import ConfigError
from toolkit.untrusted import read_json_file, reason

SUPPORTED = ("Phi3ForCausalLM",)
# Transformers has no code for these: theirs comes with the model, and runs only when it is trusted.
REMOTE_CODE = ("Phi3SmallForCausalLM",)
_MODEL_TYPES = {"Phi3ForCausalLM": "phi3", "Phi3SmallForCausalLM": "phi3small"}
_DTYPES = ("bfloat16", "float16", "float32", "auto")
# Transformers fails at these when they stand there as null.
_ABSENT_WHEN_NULL = ("auto_map", "head_dim", "quantization_config", "num_key_value_heads")
# Keys that make transformers read other files than the usual ones, and the usual value.
_ELSEWHERE: dict[str, Any] = {"transformers_weights": "model.safetensors", "configuration_files": []}
_USUAL_IDS = {"bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000}
# Far beyond every published Phi-3: what is larger is a mistake, or meant to take all memory.
_LARGEST = {
    "hidden_size": 1 << 17,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "num_hidden_layers": 1 << 10,
    "intermediate_size": 1 << 20,
    "ff_intermediate_size": 1 << 20,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 24,
    "sliding_window": 1 << 30,
}
# Of a shape in a manifest or a report: plans count up to these.
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

    `where` names the file in errors. Raises ConfigError, with the key and the edit to make, for another architecture,
    an already quantized model, senseless numbers, and whatever else no bundle can be built from.
    """
    architecture = _architecture(config, where)
    _check_kind(config, architecture, where)
    hidden, heads, layers, vocab, max_context = (
        _number(config, key, where)
        for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "max_position_embeddings")
    )
    kv_heads = _number(config, "num_key_value_heads", where, default=heads)
    inner = "ff_intermediate_size" if config.get("ff_intermediate_size") is not None else "intermediate_size"
    head_dim = _head_dim(config, hidden, heads, kv_heads, where)
    rope = parse_rope(config, max_context, head_dim, where, own_code=architecture in REMOTE_CODE)
    return ModelShape(
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_number(config, inner, where),
        vocab=vocab,
        max_context=max_context,
        original_context=rope.original_context,
        rope=rope.kind,
        rotary_dim=rope.rotary_dim,
        tied_embeddings=bool(config.get("tie_word_embeddings")),
    )


def plain_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """A config.json with the same meaning that every tool of a build understands alike; itself when it needs no edit.

    Raises ConfigError as `parse_shape`.
    """
    shape = parse_shape(config, where)
    plain = {key: value for key, value in config.items() if value is not None or key not in _ABSENT_WHEN_NULL}
    if shape.needs_remote_code:
        return plain
    rope = parse_rope(config, shape.max_context, shape.head_dim, where)
    written = written_out(plain, rope)
    # Transformers takes Phi-3-mini's ids for missing ones, and fails where they are outside the vocabulary.
    written |= {key: None for key, usual in _USUAL_IDS.items() if key not in config and usual >= shape.vocab}
    return plain if written == plain | {"rope_scaling": plain.get("rope_scaling")} else written


def _number(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        given = "missing" if value is None else f"{str(value)[:40]!r}"
        hint = "take config.json from the model's page"
        raise ConfigError(f"{where}: missing or not a positive whole number: {key} ({given})", hint)
    if value > _LARGEST[key]:
        message = f"{where}: {key}: {str(value)[:40]} is more than any Phi-3 has"
        raise ConfigError(message, "take config.json from the model's page")
    return value


def _head_dim(config: Mapping[str, Any], hidden: int, heads: int, kv_heads: int, where: str) -> int:
    """The elements of a head. Raises ConfigError when the widths don't make whole heads and groups of them."""
    if hidden % heads:
        message = f"{where}: hidden_size {hidden} isn't a multiple of num_attention_heads {heads}"
        raise ConfigError(message, "take config.json from the model's page")
    if heads % kv_heads:
        raise ConfigError(
            f"{where}: num_key_value_heads {kv_heads} doesn't divide num_attention_heads {heads}",
            f'as many attention heads share each key-value head: set "num_key_value_heads" to a divisor of {heads}, '
            "the one that the weights were made with",
        )
    head_dim = _number(config, "head_dim", where, default=hidden // heads)
    if head_dim != hidden // heads:
        raise ConfigError(
            f"{where}: head_dim {head_dim} contradicts hidden_size / num_attention_heads = {hidden // heads}",
            'remove "head_dim" if the weights have that shape; other widths of heads can\'t be built',
        )
    if head_dim % HEAD_MULTIPLE:
        raise ConfigError(
            f"{where}: heads of {head_dim} elements (hidden_size / num_attention_heads): the runtime's attention wants "
            f"a multiple of {HEAD_MULTIPLE}",
            "no published Phi-3 has such heads",
        )
    return head_dim


def _check_kind(config: Mapping[str, Any], architecture: str, where: str) -> None:
    """Refuse a configuration that describes something else than an unquantized model of that architecture."""
    if (quantization := config.get("quantization_config")) is not None:
        method = quantization.get("quant_method", "an unknown method") if isinstance(quantization, dict) else "?"
        message = f"{where}: the model is already quantized ({str(method)[:40]})"
        raise ConfigError(message, "give the original bf16, fp16 or fp32 model")
    if config.get("quantization"):
        message = f"{where}: the model is already quantized (MLX)"
        raise ConfigError(message, "give the original bf16, fp16 or fp32 model")
    kind = _MODEL_TYPES[architecture]
    if config.get("model_type") != kind:
        given = repr(config.get("model_type"))[:40] if config.get("model_type") is not None else "missing"
        message = f"{where}: model_type: {given}; architecture '{architecture}' has '{kind}'"
        raise ConfigError(message, f'set "model_type" to "{kind}"')
    tied = config.get("tie_word_embeddings")
    if not (tied is None or isinstance(tied, bool)):
        raise ConfigError(f"{where}: tie_word_embeddings: {str(tied)[:40]!r} is neither true nor false")
    for key in ("torch_dtype", "dtype"):
        if config.get(key) not in (None, *_DTYPES):
            message = f"{where}: {key}: {str(config[key])[:40]!r} isn't a type of unquantized weights"
            raise ConfigError(message, f"give the original model, whose weights are {', '.join(_DTYPES[:3])}")
    if architecture in SUPPORTED:
        _check_options(config, where)


def _check_options(config: Mapping[str, Any], where: str) -> None:
    """Refuse settings of a Phi-3 that transformers, the builder or the runtime pass over or can't carry out."""
    if config.get("hidden_act") not in (None, "silu"):
        message = f"{where}: hidden_act: {str(config['hidden_act'])[:40]!r} isn't supported"
        raise ConfigError(message, 'Phi-3 was trained with "silu": take config.json from the model\'s page')
    if config.get("attention_bias"):
        raise ConfigError(f"{where}: attention_bias: no Phi-3 has biases", 'set "attention_bias" to false')
    if config.get("sliding_window") is not None:
        _number(config, "sliding_window", where)
    eps = config.get("rms_norm_eps")
    if eps is not None and (isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1):
        raise ConfigError(f"{where}: rms_norm_eps: {str(eps)[:40]!r} isn't between 0 and 1", "Phi-3 has 1e-05")
    for key, usual in _ELSEWHERE.items():
        if config.get(key) not in (None, usual):
            message = f"{where}: {key}: names other files in the place of the usual ones"
            raise ConfigError(message, f'remove "{key}"; only the files with the usual names are looked at')


def _architecture(config: Mapping[str, Any], where: str) -> str:
    names = config.get("architectures")
    supported = f"supported: {', '.join(SUPPORTED + REMOTE_CODE)}"
    if not isinstance(names, list) or not names:
        if config.get("model_type") in _MODEL_TYPES.values():
            raise ConfigError(f"{where}: architectures: missing", f'set "architectures" to ["{SUPPORTED[0]}"]')
        raise ConfigError(f"{where}: architecture 'none' isn't supported", supported)
    name = str(names[0])[:80]
    if name not in SUPPORTED + REMOTE_CODE:
        raise ConfigError(f"{where}: architecture '{name}' isn't supported", supported)
    if len(names) > 1:
        raise ConfigError(f"{where}: architectures: more than one", f'set "architectures" to ["{name}"]')
    return name


def read_shape(config: Path, where: str) -> ModelShape:
    """The shape that a config.json describes; `where` names the model in errors. Raises ConfigError."""
    if not config.is_file():
        raise ConfigError(f"{where}: not a model folder: no config.json", "only that file is read for a plan")
    return parse_shape(read_config(config), f"{where}/config.json")


def read_config(path: Path, *, controls: bool = False) -> dict[str, Any]:
    """The JSON object in a file of a model; with `controls` its texts may have control characters.

    Raises ConfigError, which names the file, for one that can't be read, is no JSON object, or is far too large.
    """
    try:
        value = read_json_file(path, controls=controls)
    except OSError as exc:
        raise ConfigError(f"{shown(path)}: cannot be read: {reason(exc)}") from exc
    except ValueError as exc:
        hint = "get the file again from the model's page"
        raise ConfigError(f"{shown(path)}: not valid JSON: {reason(exc)}", hint) from exc
    if not isinstance(value, dict):
        raise ConfigError(f"{shown(path)}: not a JSON object", "get the file again from the model's page")
    return value
