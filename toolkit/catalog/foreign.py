"""Recognizing what a folder or file is that isn't a model edgephi can build from, so that errors say what is there.

Only names are looked at, and the few small files that tell more.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from toolkit.catalog.shape import read_config
from toolkit.config import shown
from toolkit.errors import ConfigError

ADAPTER = "adapter_config.json"
_CONFIG = "config.json"
_LAYOUT = "a model folder holds config.json, tokenizer files and *.safetensors"
_ORIGINAL = "give the original model: its hub id, or a folder in Hugging Face layout with *.safetensors"
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,9})")
_SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.safetensors")
# The most entries of a folder that are looked at: a folder of pictures isn't searched for a model.
_MOST_ENTRIES = 2000


def not_a_model(path: Path) -> ConfigError:
    """The error for a path without a config.json: names what is there, and what to give instead."""
    where = shown(path)
    if not path.is_dir():
        return _not_a_folder(path, where)
    names = _names(path)
    for recognize in (_adapter, _bundle, _foreign_weights, _stores, _levels):
        if found := recognize(path, names):
            what, hint = found
            return ConfigError(f"{where}: {what}", hint)
    if any(name.endswith(".safetensors") for name in names):
        hint = "copy config.json and the tokenizer files from the model's page into the folder"
        return ConfigError(f"{where}: not a model folder: weights, but no config.json", hint)
    return ConfigError(f"{where}: not a model folder: no config.json", _LAYOUT)


def no_weights(path: Path) -> ConfigError:
    """The error for a folder with a config.json and no weights that can be read."""
    where, names = shown(path), _names(path)
    for recognize in (_adapter, _lone_shards, _trainer_state, _foreign_weights, _levels):
        if found := recognize(path, names):
            what, hint = found
            return ConfigError(f"{where}: no weights: {what}", hint)
    if any(name.endswith(".bin") for name in names):
        hint = (
            "convert them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder), "
            "and copy the tokenizer files"
        )
        return ConfigError(f"{where}: only PyTorch .bin weights, no safetensors", hint)
    if other := [name for name in names if name.endswith(".safetensors")]:
        what = f"{', '.join(other[:3])} has another name than model.safetensors"
        hint = "rename it, if it holds the whole model; else get the model again"
        return ConfigError(f"{where}: no weights: {what}", hint)
    message = f"{where}: no weights: neither model.safetensors nor model.safetensors.index.json"
    return ConfigError(message, "download the model again, or give the folder that has them")


def tokenizer_hint(folder: Path) -> str | None:
    """The command that completes a folder without tokenizer files, where they lie in its parent; None elsewhere."""
    parent = folder.absolute().parent
    if not _CHECKPOINT.fullmatch(folder.absolute().name) or not (parent / "tokenizer.json").is_file():
        return None
    return f"the trainer put them beside it: cp {typed(parent)}/*token* {typed(folder)}"


def typed(path: Path) -> str:
    """A path as people type it in a command: never taken for a name, and quoted for a shell."""
    text = shown(path)
    return shlex.quote(text if "/" in text or path.is_absolute() else f"./{text}")


def _names(folder: Path) -> list[str]:
    names: list[str] = []
    try:
        for entry in folder.iterdir():
            names.append(entry.name)
            if len(names) == _MOST_ENTRIES:
                break
    except OSError:
        return []
    return sorted(names)


def _not_a_folder(path: Path, where: str) -> ConfigError:
    if path.is_file() and path.suffix.lower() in _FORMATS:
        return ConfigError(f"{where}: {_FORMATS[path.suffix.lower()]}", _ORIGINAL)
    if path.is_file() and path.suffix == ".safetensors":
        return ConfigError(f"{where}: not a folder", f"give the folder that it lies in: {typed(path.parent)}")
    return ConfigError(f"{where}: not a folder", "a model is a folder in Hugging Face layout")


_FORMATS = {
    ".gguf": "GGUF, for llama.cpp: quantized already",
    ".ggml": "GGML, for llama.cpp: quantized already",
    ".onnx": "ONNX: exported already",
    ".h5": "TensorFlow weights, no safetensors",
    ".msgpack": "Flax weights, no safetensors",
    ".pth": "PyTorch .pth weights, no safetensors",
    ".tflite": "TensorFlow Lite: converted already",
    ".task": "MediaPipe: converted already",
}

_Found = tuple[str, str] | None


def _adapter(folder: Path, names: list[str]) -> _Found:
    if ADAPTER not in names:
        return None
    try:
        base = read_config(folder / ADAPTER).get("base_model_name_or_path")
    except ConfigError:
        base = None
    made = f" for '{base[:200]}'" if isinstance(base, str) and base else ""
    option = "" if made else " --base MODEL"
    return (
        f"an adapter{made}, not a whole model ({ADAPTER})",
        f"merge it with its base first: edgephi models merge {typed(folder)}{option} -o NEW_FOLDER",
    )


def _bundle(folder: Path, names: list[str]) -> _Found:
    if "genai_config.json" not in names:
        return None
    if "manifest.json" in names:
        return (
            "a bundle: it is built already",
            f"bring it to a target: edgephi deploy {typed(folder)} TARGET",
        )
    return "an ONNX model for onnxruntime-genai: exported already", _ORIGINAL


def _foreign_weights(folder: Path, names: list[str]) -> _Found:
    for name in names:
        kind = _FORMATS.get(Path(name).suffix.lower())
        if kind and (folder / name).is_file():
            return f"{name} is {kind}", _ORIGINAL
    return None


def _stores(folder: Path, names: list[str]) -> _Found:
    if {"blobs", "manifests"} <= {*names}:
        return "Ollama's store, whose models are GGUF, for llama.cpp", _ORIGINAL
    if "snapshots" in names and "refs" in names:
        for snapshot in _subfolders(folder / "snapshots", has=_CONFIG):
            return "the hub's cache of a model, not the model", f"give its snapshot: {typed(snapshot)}"
        return "the hub's cache of a model, without a whole snapshot", "download the model again"
    return None


def _levels(folder: Path, names: list[str]) -> _Found:
    """A folder one level too high or too deep: a trainer's output, or a folder around the model's."""
    trained = [name for name in names if _CHECKPOINT.fullmatch(name)]
    if trained:
        newest = max(trained, key=lambda name: int(name.partition("-")[2]))
        what = f"a trainer's output: {len(trained)} checkpoint{'s' if len(trained) > 1 else ''}"
        return what, f"give one of them, such as the newest: {typed(folder / newest)}"
    if _CONFIG not in names:
        inside = [*_subfolders(folder, has=_CONFIG), *_subfolders(folder, has=ADAPTER)]
        if inside:
            others = f" (or {len(inside) - 1} more)" if len(inside) > 1 else ""
            return "not a model folder, but a folder around one", f"give {typed(inside[0])}{others}"
    parent = folder.absolute().parent
    if (parent / _CONFIG).is_file() and any(parent.glob("model*.safetensors")):
        return "not a model folder, but a part of one", f"give the folder above: {typed(parent)}"
    return None


def _subfolders(folder: Path, *, has: str) -> Iterator[Path]:
    for name in _names(folder)[:100]:
        if (folder / name / has).is_file():
            yield folder / name


def _lone_shards(_: Path, names: list[str]) -> _Found:
    shards = [match for name in names if (match := _SHARD.fullmatch(name))]
    if not shards:
        return None
    count = int(shards[0][3])
    lacking = [f"{number:05d}" for number in range(1, count + 1)][:1000]
    lacking = [number for number in lacking if number not in {match[2] for match in shards}]
    parts = f"{len(shards)} of {count} parts" + (f" (not {', '.join(lacking[:3])})" if lacking else "")
    return (
        f"{parts}, and no model.safetensors.index.json that says what is in which",
        "copy it from the model's page; an interrupted download goes on where it stopped",
    )


def _trainer_state(folder: Path, names: list[str]) -> _Found:
    here = typed(folder)
    if any(name.startswith("global_step") for name in names):
        hint = f"let its own script join them: python {here}/zero_to_fp32.py {here} NEW_FOLDER --safe_serialization"
        return "a checkpoint of DeepSpeed, in pieces", hint
    pieces = [name for name in names if name.startswith("pytorch_model_fsdp")]
    if pieces:
        hint = f"let accelerate join them: accelerate merge-weights {here}/{shlex.quote(pieces[0])} NEW_FOLDER"
        return "a checkpoint of FSDP, in pieces", hint
    return None
