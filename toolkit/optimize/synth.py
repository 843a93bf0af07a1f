"""Write a Phi-3 of any shape with random weights, in Hugging Face layout.

Size, speed and memory don't depend on what a model has learned, so a synthesized model stands in for a
published one wherever the hub is out of reach. Tensors are drawn and written block by block: memory stays
flat at any size.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from statistics import NormalDist
from typing import IO, Any, Literal

from toolkit.catalog.preset import Preset
from toolkit.config import data_path, shown
from toolkit.errors import ConfigError, HostDiskFull
from toolkit.events import Progress, Service
from toolkit.files import replaced_folder
from toolkit.units import size_text
from toolkit.untrusted import name_problem

BYTES_PER_VALUE = 2  # bfloat16
SHARD_BYTES = 1 << 30
_BLOCK_VALUES = 1 << 22
_STANDARD_DEVIATION = 0.02  # initializer_range of every published Phi-3
_BFLOAT16_ONE = 0x3F80


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, before its values exist."""

    name: str
    shape: tuple[int, ...]
    fill: Literal["normal", "ones", "zeros"]

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.values * BYTES_PER_VALUE


def tensors(preset: Preset) -> Iterator[Tensor]:
    """All tensors of a checkpoint, named and ordered as in the published modeling files."""
    small = preset.architecture == "Phi3SmallForCausalLM"
    hidden, inner = preset.hidden_size, preset.intermediate_size
    attention = ("query_key_value", "dense") if small else ("qkv_proj", "o_proj")
    linears = {
        f"self_attn.{attention[0]}": (preset.qkv_width, hidden),
        f"self_attn.{attention[1]}": (hidden, hidden),
        f"mlp.{'up_proj' if small else 'gate_up_proj'}": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }

    def norm(name: str) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (hidden,), "ones")
        if small:
            yield Tensor(f"{name}.bias", (hidden,), "zeros")

    yield Tensor("model.embed_tokens.weight", (preset.vocab_size, hidden), "normal")
    for layer in range(preset.layers):
        prefix = f"model.layers.{layer}"
        yield from norm(f"{prefix}.input_layernorm")
        for name, shape in linears.items():
            yield Tensor(f"{prefix}.{name}.weight", shape, "normal")
            if small:
                yield Tensor(f"{prefix}.{name}.bias", shape[:1], "zeros")
        yield from norm(f"{prefix}.post_attention_layernorm")
    yield from norm("model.final_layernorm" if small else "model.norm")
    if not preset.tied_embeddings:
        yield Tensor("lm_head.weight", (preset.vocab_size, hidden), "normal")


def synthesize(
    shape: Preset,
    out: Path,
    *,
    layers: int | None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> Service[Path]:
    """Write ``shape`` with its first ``layers`` layers (None: all) into the new folder ``out`` and return it.

    Weights are bfloat16 in shards of at most ``shard_bytes`` (a larger tensor gets a shard of its own). A
    tensor's values depend on ``seed`` and its name alone, so a cut shares its layers with the full model. The
    folder appears only when it is complete. Yields Progress in bytes.

    Raises ConfigError if ``out`` exists and isn't an empty folder or ``layers`` is out of range, and
    HostDiskFull if the disk can't hold the weights.
    """
    preset = shape.cut(layers)
    if problem := name_problem(out.absolute().name):
        raise ConfigError(f"{shown(out)}: no model can have that name: {problem}", "name another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} already exists and isn't an empty folder", "name a new folder, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    total = sum(tensor.size_bytes for tensor in tensors(preset))
    free = shutil.disk_usage(out.parent).free
    if free < total:
        raise HostDiskFull(
            f"{preset.name} takes {size_text(total)} and {out.parent} has {size_text(free)} free",
            "free some space, choose another disk, or cut the model to fewer layers",
        )
    with replaced_folder(out) as fresh:
        yield from _write_weights(preset, fresh, seed=seed, shard_bytes=shard_bytes)
        for name, content in (_configs(preset) | tokenizer_files(preset)).items():
            if not isinstance(content, str):
                content = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
            (fresh / name).write_text(content, "utf-8")
    return out


def _write_weights(preset: Preset, folder: Path, *, seed: int, shard_bytes: int) -> Service[None]:
    shards = _shards(preset, shard_bytes)
    total = sum(tensor.size_bytes for shard in shards for tensor in shard)
    done = 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as file:
            file.write(_safetensors_header(shard))
            for tensor in shard:
                weight_map[tensor.name] = name
                for written in _write_values(tensor, file, seed):
                    done += written
                    yield Progress(f"write {preset.name}", done, total, "bytes")
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _shards(preset: Preset, shard_bytes: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors(preset):
        if shards[-1] and filled + tensor.size_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size_bytes
    return shards


def _safetensors_header(shard: list[Tensor]) -> bytes:
    """Length, then JSON, padded with spaces so that the data begins at a multiple of 8 (safetensors' format).

    Written by hand because the safetensors library wants every tensor of a file in memory at once.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        end = offset + tensor.size_bytes
        header[tensor.name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_values(tensor: Tensor, file: IO[bytes], seed: int) -> Iterator[int]:
    """Write a tensor's values in blocks; yields the bytes of each block."""
    import numpy as np

    # A tensor's values are independent of the order of tensors and of the number of layers.
    generator = np.random.Generator(np.random.SFC64([seed, zlib.crc32(tensor.name.encode())]))
    for start in range(0, tensor.values, _BLOCK_VALUES):
        count = min(_BLOCK_VALUES, tensor.values - start)
        if tensor.fill == "normal":
            bits = _normal_table()[np.frombuffer(generator.bytes(2 * count), dtype="<u2")]
        else:
            bits = np.full(count, _BFLOAT16_ONE if tensor.fill == "ones" else 0, dtype="<u2")
        file.write(bits.data)
        yield count * BYTES_PER_VALUE


@cache
def _normal_table() -> Any:
    """The 65,536 evenly spaced quantiles of a normal distribution, as bfloat16 bit patterns (uint16).

    Looking random bytes up in it is several times faster than drawing normal values, and bfloat16 has no room
    for a finer distribution.
    """
    import numpy as np

    normal = NormalDist(0.0, _STANDARD_DEVIATION)
    quantiles = np.array([normal.inv_cdf((rank + 0.5) / 65536) for rank in range(65536)], dtype="<f4")
    # bfloat16 is the upper half of float32.
    return np.ascontiguousarray(quantiles.view("<u2")[1::2])


def _configs(preset: Preset) -> dict[str, Any]:
    ids = preset.token_ids
    config = preset.config()
    generation = {
        "bos_token_id": config["bos_token_id"],
        # As published with Phi-3-mini.
        "eos_token_id": sorted(ids[token] for token in ("<|endoftext|>", "<|assistant|>", "<|end|>")),
        "pad_token_id": ids["<|endoftext|>"],
    }
    return {"config.json": config, "generation_config.json": generation}


def tokenizer_files(preset: Preset) -> dict[str, Any]:
    """File name → JSON content (or text) of a tokenizer with an entry for each of ``vocab_size`` ids.

    It is the tokenizer of phi3-nano with filler words behind its pieces and the added tokens at the preset's
    ids. No merge leads to a filler word, so text is encoded as by phi3-nano, and whatever id a random model
    emits can be decoded.
    """
    source = data_path("phi3-nano")
    pipeline = json.loads((source / "tokenizer.json").read_text("utf-8"))
    settings = json.loads((source / "tokenizer_config.json").read_text("utf-8"))

    known = {token["content"]: token for token in pipeline["added_tokens"]}
    control = [token for token in pipeline["added_tokens"] if token["content"] not in preset.token_ids]
    added = [
        (known.get(content) or known["<|user|>"]) | {"content": content, "id": number}
        for content, number in sorted(preset.token_ids.items(), key=lambda item: item[1])
    ]
    by_id = {number: content for content, number in preset.token_ids.items()}
    vocabulary: dict[str, int] = pipeline["model"]["vocab"]
    for number in range(len(vocabulary), preset.vocab_size):
        vocabulary[by_id.get(number, f"▁word{number}")] = number
    pipeline["added_tokens"] = control + added
    settings["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in control + added
    }
    settings["model_max_length"] = preset.context_length
    return {
        "tokenizer.json": pipeline,
        "tokenizer_config.json": settings,
        "special_tokens_map.json": json.loads((source / "special_tokens_map.json").read_text("utf-8")),
        "chat_template.jinja": (source / "chat_template.jinja").read_text("utf-8"),
    }
