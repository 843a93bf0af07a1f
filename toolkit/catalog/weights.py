"""The weights of a model folder: the safetensors files that make them up, and the tensors that their headers list.

Nothing but headers is read. What transformers would take in the place of these files is refused by name.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.catalog.foreign import ADAPTER, no_weights
from toolkit.catalog.shape import SUPPORTED, ModelShape, read_config
from toolkit.config import shown
from toolkit.errors import ConfigError
from toolkit.untrusted import path_problem, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LFS_POINTER = b"version https://git-lfs"
_LARGEST_HEADER_BYTES = 16 << 20
FLOAT_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
# Older checkpoints store these tables, which transformers computes again.
_COMPUTED = ".rotary_emb.inv_freq"
_MOST_NAMED = 4


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file: `start` is the place of its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    size_bytes: int


def weight_names(folder: Path) -> list[str]:
    """The safetensors files that make up the model in `folder`; empty if there are none.

    Raises ConfigError for an index that can't be followed, and when two sets of weights lie side by side: the one that
    transformers takes isn't the one that an index describes.
    """
    if not (folder / INDEX).is_file():
        return [SINGLE] if os.path.lexists(folder / SINGLE) else []
    shards = read_config(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ConfigError(f"{shown(folder / INDEX)}: no weight_map", "get the file again from the model's page")
    names = sorted(set(shards.values()))
    if any("/" in name or path_problem(name) for name in names):
        raise ConfigError(f"{shown(folder / INDEX)}: a shard lies outside the folder")
    if names != [SINGLE] and os.path.lexists(folder / SINGLE):
        raise ConfigError(
            f"{shown(folder)}: two sets of weights: {SINGLE}, and the {len(names)} files that {INDEX} lists",
            "transformers would read the first and nothing else: move away the set that isn't this model's",
        )
    return names


def weight_files(folder: Path) -> list[str]:
    """The files that make up the weights: safetensors, and the index that leads to them if there is one."""
    names = weight_names(folder)
    return [*names, INDEX] if (folder / INDEX).is_file() else names


def check_weights(folder: Path, shape: ModelShape) -> None:
    """Raise ConfigError unless the folder's safetensors are whole and hold each tensor of the shape, and no other."""
    where = shown(folder)
    names = weight_names(folder)
    if not names:
        raise no_weights(folder)
    if (folder / ADAPTER).is_file():
        raise ConfigError(
            f"{where}: an adapter beside whole weights: {ADAPTER}",
            "transformers may apply it to them: if it was merged already, move away the files named adapter_*; "
            "else move the weights away, and see what edgephi says of the adapter then",
        )
    tensors: dict[str, StoredTensor] = {}
    problems = []
    for name in names:
        try:
            for key, tensor in read_header(folder / name):
                if key in tensors:
                    raise ValueError(f"{key} is also in {tensors[key].file}")
                tensors[key] = tensor
        except ValueError as exc:
            problems.append(f"{name}: {exc}")
    if problems:
        message = f"{where}: incomplete weights\n  " + "\n  ".join(problems)
        raise ConfigError(message, "download the model again; an interrupted download goes on where it stopped")
    if shape.architecture in SUPPORTED:
        _check_tensors(tensors, shape, where)


def read_header(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a safetensors file. Raises ValueError with the mistake that its header and its size show."""
    if not path.is_file():
        raise ValueError("missing" if not os.path.lexists(path) else "not a file, or a link to nothing")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start and _LFS_POINTER.startswith(start):
                raise ValueError("a Git LFS pointer, not the file (git lfs pull fetches it)")
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 0 < length <= min(size - 8, _LARGEST_HEADER_BYTES):
                raise ValueError(f"truncated or not safetensors ({size} bytes)")
            raw = file.read(length)
    except OSError as exc:
        raise ValueError(f"cannot be read: {exc.strerror or exc}") from exc
    try:
        header = read_json(raw.rstrip(b" "), controls=True)
        header.pop("__metadata__", None)
        tensors = {str(key): _entry(entry, path.name, 8 + length) for key, entry in header.items()}
        end = max(tensor.start + tensor.size_bytes for tensor in tensors.values())
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ValueError("not safetensors") from exc
    if size != end:
        raise ValueError(f"{size} bytes instead of {end}")
    yield from tensors.items()


def _entry(entry: Mapping[str, Any], file: str, data: int) -> StoredTensor:
    first, last = entry["data_offsets"]
    numbers = [first, last - first, *entry["shape"]]
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise ValueError("no sizes")
    dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
    if dtype in FLOAT_BYTES and math.prod(shape) * FLOAT_BYTES[dtype] != last - first:
        raise ValueError("sizes that contradict each other")
    return StoredTensor(dtype, shape, file, data + first, last - first)


def expected_tensors(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of each tensor in a checkpoint of a Phi-3 of that shape, as transformers names them."""
    hidden, inner = shape.hidden, shape.intermediate
    attention = shape.heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.qkv_proj.weight", (attention + 2 * shape.kv_heads * shape.head_dim, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, attention)
        yield f"{prefix}.mlp.gate_up_proj.weight", (2 * inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inner)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not shape.tied_embeddings:
        yield "lm_head.weight", (shape.vocab, hidden)


def _check_tensors(tensors: Mapping[str, StoredTensor], shape: ModelShape, where: str) -> None:
    """Hold a checkpoint's tensors against config.json: transformers fills in missing ones at random, with a mere word
    in its log."""
    expected = dict(expected_tensors(shape))
    wrong = [
        f"{key}: {_shape_text(tensors[key].shape)} instead of {_shape_text(wanted)}"
        for key, wanted in expected.items()
        if key in tensors and tensors[key].shape != wanted
    ]
    wrong += [f"{key}: missing" for key in expected if key not in tensors]
    known = {*expected, "lm_head.weight"}
    wrong += [f"{key}: no tensor of it" for key in tensors if key not in known and not key.endswith(_COMPUTED)]
    if wrong:
        more = [f"and {len(wrong) - _MOST_NAMED} more"] if len(wrong) > _MOST_NAMED else []
        lines = "\n  ".join([*(line[:200] for line in wrong[:_MOST_NAMED]), *more])
        message = f"{where}: the weights aren't those of the model that config.json describes\n  {lines}"
        raise ConfigError(message, _tensor_hint(tensors))
    if other := sorted({tensor.dtype[:20] for key, tensor in tensors.items() if key in expected} - {*FLOAT_BYTES}):
        message = f"{where}: weights of type {', '.join(other)}"
        raise ConfigError(message, f"give the original model, whose weights are {', '.join(FLOAT_BYTES)}")


def _tensor_hint(tensors: Mapping[str, StoredTensor]) -> str:
    if any(".lora_" in key for key in tensors):
        return "these are an adapter's: merge it with its base first (edgephi models merge)"
    if any(key.startswith(("_orig_mod.", "module.", "base_model.")) for key in tensors):
        return "a trainer wrapped the model: save the model inside with save_pretrained"
    if any(".qkv_proj.weight_" in key or key.endswith((".qweight", ".weight_scale", ".absmax")) for key in tensors):
        return "they are quantized already: give the original model"
    return "take config.json and the weights from the same place"


def _shape_text(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))[:80]
