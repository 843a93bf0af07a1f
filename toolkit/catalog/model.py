"""Models: Phi-3 in Hugging Face layout, its shape, and the exact files that make it up."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.catalog.foreign import not_a_model, tokenizer_hint
from toolkit.catalog.hash_memo import HashMemo, chunks
from toolkit.catalog.preset import PRESETS
from toolkit.catalog.shape import ModelShape, parse_shape, read_config, read_shape
from toolkit.catalog.tokens import GENERATION_CONFIG, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, check_ids, read_generation
from toolkit.catalog.toml import unknown_name
from toolkit.catalog.weights import check_weights, weight_files
from toolkit.config import data_path, is_path, shown
from toolkit.errors import ConfigError
from toolkit.events import Progress, Service, Warning_, announce
from toolkit.untrusted import name_problem

SHIPPED = ("phi3-nano",)

TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG)
_MORE_TOKENIZER_FILES = (
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE,
)
_CONFIG = "config.json"
_CONFIG_FILES = (_CONFIG, GENERATION_CONFIG)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?:@[\w./-]+)?")


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
    if not (folder / _CONFIG).is_file():
        raise not_a_model(folder)
    config = read_config(folder / _CONFIG)
    shape = parse_shape(config, f"{where}/{_CONFIG}")
    check_ids(config, shape.vocab, f"{where}/{_CONFIG}")
    check_ids(read_generation(folder), shape.vocab, f"{where}/{GENERATION_CONFIG}")
    if shape.needs_remote_code:
        if not trust_remote_code:
            raise refuse_remote_code(where, shape.architecture)
        _check_remote_code(config, folder, where)
    if missing := [name for name in TOKENIZER_FILES if not (folder / name).is_file()]:
        raise missing_tokenizer(where, missing, tokenizer_hint(folder))
    check_weights(folder, shape)
    name = id or folder.resolve().name
    if problem := name_problem(name):
        raise ConfigError(f"{where}: no bundle can have that name: {problem}", "rename the folder")
    # Trust goes no further than need: an architecture that transformers knows never runs the model's own code.
    return SourceModel(name, folder, revision, shape, remote_code=shape.needs_remote_code)


def known_shape(ref: str) -> ModelShape:
    """The shape of a model without its weights: a folder's config.json, a shipped model, a preset or its hub id.

    Raises ConfigError for any other `ref`; nothing is downloaded.
    """
    path = model_folder(ref)
    if path is not None:
        if not (path / _CONFIG).is_file():
            raise not_a_model(path)
        return read_shape(path / _CONFIG, shown(path))
    if shipped := shipped_model(ref):
        return shipped.shape
    presets = {name: preset for preset in PRESETS.values() for name in (preset.name, preset.hub_id) if name}
    if ref not in presets:
        hint = "give ./FOLDER with its config.json, or one of `edgephi models list`"
        raise unknown_name("model", ref, [*presets, *SHIPPED], hint)
    return parse_shape(presets[ref].config(), ref)


def model_folder(ref: str) -> Path | None:
    """The existing folder that a word for a model means; None for a name: of a shipped model, a preset, the hub's.

    A bare name never means a folder, which is written ./name; a relative path like the hub's org/name does, and that is
    announced. Raises ConfigError for a word that is a known name and a model folder, or the name of a folder alone.
    """
    path = Path(ref).expanduser()
    if not path.exists():
        return None
    if is_path(ref):
        if HUB_ID.fullmatch(ref):
            _tell_from_the_hub(ref, path)
        return path
    if ref not in SHIPPED and ref not in PRESETS:
        if path.is_dir():
            raise ConfigError(f"no model '{ref}'", f"the folder of that name is ./{ref}")
    elif (path / "config.json").is_file():
        other = str(data_path(ref)) if ref in SHIPPED else PRESETS[ref].hub_id
        known = f"; write {other} for the other one" if other else ""
        raise ConfigError(
            f"'{ref}' is a model that edgephi knows, and a folder here", f"write ./{ref} for the folder{known}"
        )
    return None


def _tell_from_the_hub(ref: str, path: Path) -> None:
    there = f"{ref}@main" if "@" not in ref else None
    published = {preset.hub_id for preset in PRESETS.values()}
    if ref.partition("@")[0] in published or _in_hub_cache(ref.partition("@")[0]):
        hint = f"write ./{ref} for the folder" + (f", {there} for the hub's model" if there else "")
        raise ConfigError(f"'{ref}' is a model of the hub, and a folder here", hint)
    also = f"; {there} is the hub's model of that name" if there else ""
    announce(Warning_(f"{ref} is the folder {path.absolute()}{also}"))


def _in_hub_cache(repo: str) -> bool:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    return (cache / f"models--{repo.replace('/', '--')}").is_dir()


def shipped_model(name: str) -> SourceModel | None:
    """The model of that name that came with edgephi."""
    if name not in SHIPPED:
        return None
    return open_model(data_path(name), id=name)


def missing_tokenizer(where: str, names: list[str], hint: str | None = None) -> ConfigError:
    """The error for a model without the tokenizer files that builds and devices read; `hint` says where they are."""
    hint = hint or (
        "copy them from the model's page, or save the tokenizer again with transformers; "
        "those of Phi-3-small stand on the page of its ONNX version"
    )
    return ConfigError(f"{where}: missing tokenizer files: {', '.join(names)}", hint)


def _check_remote_code(config: dict[str, Any], folder: Path, where: str) -> None:
    """Check that the code lies in the folder, where it is part of the model's hash; nothing is fetched for it."""
    mapped = config.get("auto_map")
    named = mapped.get("AutoModelForCausalLM") if isinstance(mapped, dict) else None
    if not isinstance(named, str):
        hint = "take config.json and the *.py files from the model's page"
        raise ConfigError(f"{where}: config.json names no model code (auto_map: AutoModelForCausalLM)", hint)
    module = named.rsplit(".", 1)[0]
    if "--" in named or "/" in named or not (folder / f"{module}.py").is_file():
        message = f"{where}: missing model code: {module}.py (config.json: auto_map)"
        raise ConfigError(message, "copy the *.py files from the model's page into the folder")


def tokenizer_names(folder: Path) -> list[str]:
    """The names of the files in a folder that make up a tokenizer."""
    return [name for name in (*TOKENIZER_FILES, *_MORE_TOKENIZER_FILES) if (folder / name).is_file()]


def model_files(model: SourceModel) -> list[Path]:
    """The files that make the model what it is, sorted by name: configuration, tokenizer, weights, trusted code."""
    names = [name for name in _CONFIG_FILES if (model.folder / name).is_file()] + tokenizer_names(model.folder)
    if model.remote_code:
        names += [path.name for path in model.folder.glob("*.py")]
    return [model.folder / name for name in sorted(names + weight_files(model.folder))]


def hash_model(model: SourceModel, *, reread: bool = False) -> Service[str]:
    """SHA-256 over the names and hashes of `model_files`.

    Files already hashed aren't read again as long as path, size, modification time and inode are the same; with
    `reread` they are. Raises ConfigError for a file of the hub's cache that isn't what was downloaded.
    """
    files = model_files(model)
    memo = HashMemo.load()
    total, done = sum(path.stat().st_size for path in files), 0
    whole = hashlib.sha256()
    for path in files:
        digest = None if reread else memo.recall(path)
        if digest is None:
            hasher = hashlib.sha256()
            for chunk in chunks(path):
                hasher.update(chunk)
                done += len(chunk)
                yield Progress("hash the model", done, total, "bytes")
            digest = hasher.hexdigest()
            _refuse_damaged_download(path, digest)
            memo.remember(path, digest)
        else:
            done += path.stat().st_size
        whole.update(f"{path.name}\0{digest}\n".encode())
    memo.save()
    return whole.hexdigest()


def hashes_are_remembered(model: SourceModel) -> bool:
    """Tell if `hash_model` would take a file's hash from the memo, which a change that kept size and time deceives."""
    memo = HashMemo.load()
    return any(memo.recall(path) for path in model_files(model))


def _refuse_damaged_download(path: Path, digest: str) -> None:
    # The hub's library names large files of its cache by their SHA-256, and links to them from its snapshots.
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name) and blob.name != digest:
        raise ConfigError(
            f"{path}: damaged: its content isn't what was downloaded", f"delete it, and it is fetched again: rm {blob}"
        )
