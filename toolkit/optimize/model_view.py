"""The folder that Olive gets in the place of a model's own: the files that were listed and hashed, and no other.

Transformers, Olive and the builder look for many names, and prefer a stray file of one name to the listed ones of
another. Weights are linked; files that tools read differently, or fail at, are written anew, and the key of a build
depends on their content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.catalog.model import SourceModel, model_files
from toolkit.catalog.shape import plain_config, read_config
from toolkit.catalog.tokens import TOKENIZER_CONFIG, Tokens, read_generation, read_tokens, stop_ids
from toolkit.config import shown
from toolkit.errors import BuildError, ConfigError
from toolkit.events import Service, Warning_
from toolkit.optimize.chat_end import NoEnd, closing_token

_CONFIG, _GENAI_CONFIG = "config.json", "genai_config.json"
# This class builds any tokenizer that tokenizer.json describes.
_TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# Larger files are linked: weights.
_COPIED_BYTES = 64 << 20

_Stamp = tuple[int, ...]


@dataclass(frozen=True)
class ModelView:
    """A model as a build sees it.

    `edits` maps the names of files that are written anew to their content; `stops` are the ids that end an answer.
    `stamps` tell, for each listed file, its state when it was listed.
    """

    model: SourceModel
    edits: Mapping[str, str]
    stops: tuple[int, ...]
    stamps: Mapping[str, _Stamp | None] = field(compare=False)

    def key(self) -> list[Any]:
        """The part of a build's key that the listed files' hashes don't cover."""
        edits = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(self.edits.items())}
        return [sorted(self.stamps), edits, list(self.stops)]

    def put(self, folder: Path) -> Path:
        """Make the new folder and return it. Raises BuildError when a listed file has changed or can't be linked."""
        self.refuse_changed()
        folder.mkdir(parents=True)
        for name in self.stamps:
            try:
                if name in self.edits:
                    (folder / name).write_text(self.edits[name], encoding="utf-8")
                else:
                    _put_file(self.model.folder / name, folder / name)
            except OSError as exc:
                raise BuildError(f"{shown(self.model.folder / name)}: cannot be read: {exc.strerror or exc}") from exc
        return folder

    def refuse_changed(self) -> None:
        """Raise BuildError when a file of the model isn't what it was when it was listed: its hash says nothing."""
        changed = [name for name in self.stamps if _stamp(self.model.folder / name) != self.stamps[name]]
        changed += {path.name for path in model_files(self.model)} - {*self.stamps}
        if changed:
            raise BuildError(
                f"{shown(self.model.folder)}: changed while it was being built: {', '.join(changed[:4])}",
                "start again when nothing writes to the folder",
            )

    def finish(self, output: Path) -> None:
        """Give the runtime's configuration of a build the tokens that end an answer."""
        path = output / _GENAI_CONFIG
        config = json.loads(path.read_bytes())
        stops = list(self.stops)
        config["model"]["eos_token_id"] = stops if len(stops) > 1 else stops[0]
        if config["model"].get("pad_token_id") is None:
            config["model"]["pad_token_id"] = stops[0]
        path.write_text(json.dumps(config, indent=4), encoding="utf-8")


def view_model(model: SourceModel) -> Service[ModelView]:
    """List the files of a model and compare what they say; yields a warning for each thing that is taken otherwise.

    Raises ConfigError for tokens outside the vocabulary, files that can't be read, and a model that never stops.
    """
    folder = model.folder
    stamps = {path.name: _stamp(path) for path in model_files(model)}
    config = read_config(folder / _CONFIG)
    tokens = read_tokens(folder, model.shape.vocab)
    edits: dict[str, str] = {}
    plain = plain_config(config, f"{shown(folder)}/{_CONFIG}")
    if model.remote_code:
        plain = _without_tokenizer_code(plain)
        settings = read_config(folder / TOKENIZER_CONFIG, controls=True)
        if (changed := _plain_tokenizer_config(settings)) != settings:
            edits[TOKENIZER_CONFIG] = _text(changed)
    if plain != config:
        edits[_CONFIG] = _text(plain)
    stops = yield from _stops(model, config, tokens)
    return ModelView(model, edits, tuple(stops), stamps)


def _stops(model: SourceModel, config: dict[str, Any], tokens: Tokens) -> Service[list[int]]:
    """The ids that end an answer: those that are named, the tokenizer's own end, and the one that closes a turn."""
    stops = stop_ids(config, read_generation(model.folder))
    reasons = {}
    if tokens.eos_id is not None:
        reasons[tokens.eos_id] = "is the tokenizer's eos_token"
    try:
        reasons[tokens.added[closing_token(tokens)]] = "closes an assistant's turn in its chat template"
    except NoEnd as exc:
        named = " or ".join(f"'{tokens.text(stop)}'" for stop in dict.fromkeys([*stops, *reasons])) or "nothing"
        yield Warning_(f"{model.id}: {exc}; only {named} ends an answer: a chat may go on past its turn")
    for token, reason in reasons.items():
        if token not in stops:
            yield Warning_(f"{model.id}: '{tokens.text(token)}' ({token}) ends an answer too: it {reason}")
            stops.append(token)
    if not stops:
        raise ConfigError(
            f"{shown(model.folder)}: no token ends an answer: neither config.json nor generation_config.json has an "
            "eos_token_id",
            'set "eos_token_id" in config.json to the id of the token that ends a turn',
        )
    return stops


def _text(table: Mapping[str, Any]) -> str:
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def _without_tokenizer_code(config: dict[str, Any]) -> dict[str, Any]:
    """Phi-3-small's tokenizer is Python code around tiktoken, which a device has no use for: its runtime reads
    tokenizer.json. Of all code that comes with a model, only the model itself runs."""
    mapped = {name: code for name, code in config["auto_map"].items() if name != "AutoTokenizer"}
    return config | {"auto_map": mapped}


def _plain_tokenizer_config(table: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in table.items() if name != "auto_map"}
    return kept | {"tokenizer_class": _TOKENIZER_CLASS} if table.get("auto_map") is not None else kept


def _stamp(path: Path) -> _Stamp | None:
    """The state of a file, which a write and a rename over it change; None if it is gone."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns, state.st_ino


def _put_file(source: Path, target: Path) -> None:
    """Copy a small file; link a large one, by whatever link the system and the disks allow."""
    real = source.resolve(strict=True)
    if real.stat().st_size > _COPIED_BYTES:
        for link in (os.symlink, os.link):
            with contextlib.suppress(OSError, NotImplementedError):
                link(real, target)
                return
    shutil.copyfile(real, target)
