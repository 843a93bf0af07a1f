"""LoRA adapters, as peft saves them: a configuration, and pairs of small matrices for a base's large ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.catalog.foreign import ADAPTER
from toolkit.catalog.shape import read_config
from toolkit.catalog.weights import FLOAT_BYTES, StoredTensor, read_header
from toolkit.config import shown
from toolkit.errors import ConfigError

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
# Settings that change what is merged, and the value with which they change nothing.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "lora_bias": (False, None),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_bdlora": (None, False),
    "use_qalora": (False, None),
    "arrow_config": (None,),
}
_WITH_PEFT = (
    "peft merges it: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(new_folder), "
    "where base is AutoModelForCausalLM.from_pretrained(…, dtype='auto')"
)


@dataclass(frozen=True)
class Update:
    """A change of one matrix of the base: `scale` × `up` × `down` is added to it."""

    down: StoredTensor
    up: StoredTensor
    scale: float


@dataclass(frozen=True)
class Adapter:
    """An adapter: the changes of the base's matrices by the names of their tensors, and tensors that replace others.

    `base` is the model that it was trained on, as far as it tells.
    """

    folder: Path
    base: str | None
    updates: Mapping[str, Update]
    replacements: Mapping[str, StoredTensor]


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's configuration and the header of its weights.

    Raises ConfigError for a folder that is none, and for kinds of adapters that aren't merged by adding a product.
    """
    if not (folder / ADAPTER).is_file():
        hint = f"an adapter's folder holds {ADAPTER} and {WEIGHTS}"
        raise ConfigError(f"{shown(folder)}: not an adapter: no {ADAPTER}", hint)
    config = read_config(folder / ADAPTER)
    alpha = _check_kind(config, folder)
    try:
        tensors = dict(read_header(folder / WEIGHTS))
    except ValueError as exc:
        pickled = (folder / "adapter_model.bin").is_file()
        hint = "save it again with safe_serialization=True" if pickled else "get the adapter again"
        raise ConfigError(f"{shown(folder / WEIGHTS)}: {exc}", hint) from exc
    updates: dict[str, Update] = {}
    replacements: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        if key.endswith(_DOWN):
            up = tensors.get(key.removesuffix(_DOWN) + _UP)
            if up is None or not _make_a_product(tensor, up):
                raise _other(folder, f"{key[:120]}: no matching {_UP[1:]}")
            rank = tensor.shape[0]
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
            updates[name.removesuffix(_DOWN) + ".weight"] = Update(tensor, up, scale)
        elif not key.endswith(_UP):
            if ".lora_" in key or tensor.dtype not in FLOAT_BYTES or not key.startswith(_PREFIX):
                raise _other(folder, f"tensor {key[:120]}")
            replacements[name] = tensor
    base = config.get("base_model_name_or_path")
    return Adapter(folder, base[:200] if isinstance(base, str) and base else None, updates, replacements)


def _make_a_product(down: StoredTensor, up: StoredTensor) -> bool:
    shapes = len(down.shape) == len(up.shape) == 2 and 0 < down.shape[0] == up.shape[1]
    return shapes and {down.dtype, up.dtype} <= {*FLOAT_BYTES}


def _check_kind(config: Mapping[str, Any], folder: Path) -> float:
    """The adapter's alpha. Raises ConfigError for a kind that isn't plain LoRA."""
    if config.get("peft_type") != "LORA":
        raise _other(folder, f"peft_type {str(config.get('peft_type'))[:40]!r}")
    for key, plain in _PLAIN.items():
        if config.get(key) not in plain:
            raise _other(folder, key)
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
        message = f"{shown(folder)}/{ADAPTER}: lora_alpha: {str(alpha)[:40]!r} isn't a positive number"
        raise ConfigError(message, "get the adapter again")
    return float(alpha)


def _other(folder: Path, what: str) -> ConfigError:
    return ConfigError(f"{shown(folder)}: an adapter that isn't plain LoRA: {what}", _WITH_PEFT)
