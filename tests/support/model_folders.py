"""Small model folders that a test may break: copies of the reference model, and random ones of any shape."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from toolkit.catalog.model import shipped_model
from toolkit.catalog.shape import parse_shape
from toolkit.catalog.weights import INDEX, SINGLE, expected_tensors


def copy_nano(folder: Path) -> Path:
    """Copy the reference model into a new folder."""
    model = shipped_model("phi3-nano")
    assert model is not None
    return Path(shutil.copytree(model.folder, folder))


def change(path: Path, **keys: object) -> None:
    """Set keys of a JSON file; None removes nothing, it is null."""
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def drop(path: Path, *keys: str) -> None:
    """Remove keys of a JSON file."""
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in keys}))


def header(tensors: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> tuple[bytes, int]:
    """The header of a safetensors file, and the bytes of data that follow it."""
    entries: dict[str, Any] = {}
    end = 0
    for name, shape in tensors.items():
        start = end
        end += 2 * prod(shape) if dtype != "I8" else prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text, end


def write_weights(path: Path, tensors: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> None:
    """Write a safetensors file of zeros that takes no room on the disk."""
    head, data_bytes = header(tensors, dtype)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + data_bytes)


def tensors_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """The tensors that a folder's config.json asks for, by name, and their shapes."""
    return dict(expected_tensors(parse_shape(json.loads((folder / "config.json").read_text()), "test")))


def shard(folder: Path, parts: int = 2) -> list[str]:
    """Put zeros in several files and an index in the place of a folder's weights; returns the files' names."""
    (folder / SINGLE).unlink()
    tensors = tensors_of(folder)
    names = [f"model-{number:05d}-of-{parts:05d}.safetensors" for number in range(1, parts + 1)]
    placed = {key: names[place % parts] for place, key in enumerate(tensors)}
    for name in names:
        write_weights(folder / name, {key: shape for key, shape in tensors.items() if placed[key] == name})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return names


def teach(folder: Path, answer: Sequence[int], last: int) -> None:
    """Give a copy of the reference model weights that answer every prompt that ends in token `last` with the ids of
    `answer`, each at most once, and go on with its last one for ever."""
    import numpy
    from safetensors.numpy import save_file

    vectors = numpy.random.default_rng(1).normal(size=tensors_of(folder)["model.embed_tokens.weight"])
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    head = numpy.zeros_like(vectors)
    for before, after in pairwise([last, *answer]):
        head[after] = 10 * vectors[before]
    head[answer[-1]] += 10 * vectors[answer[-1]]
    # The layers add nothing to what the embedding says: only their norms aren't zero.
    values = {
        name: numpy.ones(shape, "f4") if len(shape) == 1 else numpy.zeros(shape, "f4")
        for name, shape in tensors_of(folder).items()
    }
    values |= {"model.embed_tokens.weight": vectors.astype("f4"), "lm_head.weight": head.astype("f4")}
    save_file(values, folder / SINGLE, metadata={"format": "pt"})
