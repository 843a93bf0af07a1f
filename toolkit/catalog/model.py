"""Models: Phi-3 in Hugging Face layout, its shape, and the exact files that make it up."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.catalog.preset import PRESETS
from toolkit.catalog.shape import ModelShape, parse_shape, read_config, read_shape
from toolkit.catalog.toml import unknown_name
from toolkit.config import data_path, shown
from toolkit.errors import ConfigError
from toolkit.events import Progress, Service
from toolkit.files import HashMemo, chunks
from toolkit.untrusted import name_problem, path_problem, read_json

SHIPPED = ("phi3-nano",)

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_MORE_TOKENIZER_FILES = (
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_CONFIG_FILES = ("config.json", "generation_config.json")
# A header lists some hundred bytes a tensor; Phi-3-medium has 240 of them.
_LARGEST_HEADER_BYTES = 16 << 20
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class SourceModel:
    """A model on this machine. `id` is a hub id, a shipped name or the folder's own name.

    `remote_code`: a build runs Python files of the folder, which the user has said they trust.
    """

    id: str
    folder: Path
    revision: str | None
    shape: ModelShape
    remote_code: bool = False

    @property
    def name(self) -> str:
        """The short name, without the organisation."""
        return self.id.rsplit("/", 1)[-1]


def refuse_remote_code(where: str, architecture: str) -> ConfigError:
    """The error for a model that needs code of its own, which the user hasn't said they trust."""
    return ConfigError(
        f"{where}: architecture '{architecture}' needs remote code: Python files that come with the model and run "
        "on this machine with your rights while it is built",
        "read them, then say --trust-remote-code; or take a Phi-3 mini or medium, which need none",
    )


def open_model(
    folder: Path, *, id: str | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> SourceModel:
    """Check that `folder` is a whole, unquantized Phi-3 and describe it; no weights are read and no code is run.

    Raises ConfigError that names what is missing or wrong, or says that the model needs code that isn't trusted.
    """
    where = shown(folder)
    if not folder.is_dir():
        raise ConfigError(f"{where}: not a folder", "a model is a folder in Hugging Face layout")
    if not (folder / "config.json").is_file():
        hint = "a model folder holds config.json, tokenizer files and *.safetensors"
        raise ConfigError(f"{where}: not a model folder: no config.json", hint)
    config = read_config(folder / "config.json")
    shape = parse_shape(config, where)
    if shape.needs_remote_code:
        if not trust_remote_code:
            raise refuse_remote_code(where, shape.architecture)
        _check_remote_code(config, folder, where)
    if missing := [name for name in TOKENIZER_FILES if not (folder / name).is_file()]:
        raise missing_tokenizer(where, missing)
    _check_weights(folder, where)
    name = id or folder.resolve().name
    if problem := name_problem(name):
        raise ConfigError(f"{where}: no bundle can have that name: {problem}", "rename the folder")
    # Trust goes no further than need: an architecture that transformers knows never runs the model's own code.
    return SourceModel(name, folder, revision, shape, remote_code=shape.needs_remote_code)


def known_shape(ref: str) -> ModelShape:
    """The shape of a model without its weights: a folder's config.json, a shipped model, a preset or its hub id.

    Raises ConfigError for any other `ref`; nothing is downloaded.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        return read_shape(path / "config.json", shown(path))
    if shipped := shipped_model(ref):
        return shipped.shape
    presets = {name: preset for preset in PRESETS.values() for name in (preset.name, preset.hub_id) if name}
    if ref not in presets:
        raise unknown_name(
            "model",
            ref,
            [*presets, *SHIPPED],
            "give a folder that holds its config.json, or one of `edgephi models list`",
        )
    return parse_shape(presets[ref].config(), ref)


def shipped_model(name: str) -> SourceModel | None:
    """The model of that name that came with edgephi."""
    if name not in SHIPPED:
        return None
    return open_model(data_path(name), id=name)


def missing_tokenizer(where: str, names: list[str]) -> ConfigError:
    """The error for a model without the tokenizer files that builds and devices read."""
    hint = (
        "copy them from the model's page, or save the tokenizer again with transformers; "
        "those of Phi-3-small stand on the page of its ONNX version"
    )
    return ConfigError(f"{where}: missing tokenizer files: {', '.join(names)}", hint)


def _check_weights(folder: Path, where: str) -> None:
    names = _weight_names(folder)
    if not names:
        if any(folder.glob("*.bin")):
            hint = (
                "convert them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder), "
                "and copy the tokenizer files"
            )
            raise ConfigError(f"{where}: only PyTorch .bin weights, no safetensors", hint)
        raise ConfigError(f"{where}: no weights: neither {_SINGLE} nor {_INDEX}")
    wrong = [problem for name in names if (problem := _shard_problem(folder / name))]
    if wrong:
        message = f"{where}: incomplete weights\n  " + "\n  ".join(wrong)
        raise ConfigError(message, "download the model again; an interrupted download goes on where it stopped")


def _check_remote_code(config: dict[str, Any], folder: Path, where: str) -> None:
    """Check that the code lies in the folder, where it is part of the model's hash; nothing is fetched for it."""
    mapped = config.get("auto_map")
    named = mapped.get("AutoModelForCausalLM") if isinstance(mapped, dict) else None
    if not isinstance(named, str):
        hint = "take config.json and the *.py files from the model's page"
        raise ConfigError(f"{where}: config.json names no model code (auto_map: AutoModelForCausalLM)", hint)
    module = named.rsplit(".", 1)[0]
    if "--" in named or not (folder / f"{module}.py").is_file():
        message = f"{where}: missing model code: {module}.py (config.json: auto_map)"
        raise ConfigError(message, "copy the *.py files from the model's page into the folder")


def _weight_names(folder: Path) -> list[str]:
    """The safetensors files that make up the model."""
    if not (folder / _INDEX).is_file():
        return [_SINGLE] if (folder / _SINGLE).exists() else []
    shards = read_config(folder / _INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConfigError(f"{shown(folder / _INDEX)}: no weight_map")
    names = sorted({str(name) for name in shards.values()})
    if any(Path(name).name != name or path_problem(name) for name in names):
        raise ConfigError(f"{shown(folder / _INDEX)}: a shard lies outside the folder")
    return names


def _shard_problem(path: Path) -> str | None:
    """The mistake in a safetensors file, as far as its header and its size show one; else None."""
    if not path.is_file():
        return f"{path.name}: missing"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if _LFS_POINTER.startswith(start) and start:
            return f"{path.name}: a Git LFS pointer, not the file (git lfs pull fetches it)"
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(size - 8, _LARGEST_HEADER_BYTES):
            return f"{path.name}: truncated or not safetensors ({size} bytes)"
        try:
            header = read_json(file.read(length), controls=True)
            end = max(_end(entry) for key, entry in header.items() if key != "__metadata__")
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return f"{path.name}: not safetensors"
    expected = 8 + length + end
    return None if size == expected else f"{path.name}: {size} bytes instead of {expected}"


def _end(entry: Any) -> int:
    """The end of a tensor in a safetensors file. Raises ValueError, LookupError or TypeError when it has none."""
    end = entry["data_offsets"][1]
    if type(end) is not int:
        raise ValueError("not an offset")
    return end


def model_files(model: SourceModel) -> list[Path]:
    """The files that make the model what it is, sorted by name: configuration, tokenizer, weights, trusted code."""
    names = [
        name for name in (*_CONFIG_FILES, *TOKENIZER_FILES, *_MORE_TOKENIZER_FILES) if (model.folder / name).is_file()
    ]
    if model.remote_code:
        names += [path.name for path in model.folder.glob("*.py")]
    return [model.folder / name for name in sorted(names + _weight_names(model.folder))]


def hash_model(model: SourceModel) -> Service[str]:
    """SHA-256 over the names and hashes of `model_files`.

    Files already hashed aren't read again as long as path, size, modification time and inode are the same.
    """
    files = model_files(model)
    memo = HashMemo.load()
    total, done = sum(path.stat().st_size for path in files), 0
    whole = hashlib.sha256()
    for path in files:
        digest = memo.recall(path)
        if digest is None:
            hasher = hashlib.sha256()
            for chunk in chunks(path):
                hasher.update(chunk)
                done += len(chunk)
                yield Progress("hash the model", done, total, "bytes")
            digest = hasher.hexdigest()
            memo.remember(path, digest)
        else:
            done += path.stat().st_size
        whole.update(f"{path.name}\0{digest}\n".encode())
    memo.save()
    return whole.hexdigest()
