"""The tokens of a model: ids that its configuration files name, its tokenizer's added tokens, and its chat template.

Several files of a model name the same ids, and no tool compares them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.catalog.shape import read_config
from toolkit.config import shown
from toolkit.errors import ConfigError
from toolkit.untrusted import read_text_file, reason

GENERATION_CONFIG, TEMPLATE = "generation_config.json", "chat_template.jinja"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_SPECIAL_TOKENS = "special_tokens_map.json"
_IDS = ("eos_token_id", "bos_token_id", "pad_token_id")
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
_EOS = "eos_token"
_MOST_STOPS = 64


@dataclass(frozen=True)
class Tokens:
    """A tokenizer's added tokens by their text, the texts of its named ones (`eos_token`, …), and its chat template."""

    added: Mapping[str, int]
    named: Mapping[str, str]
    template: str | None

    @property
    def eos_id(self) -> int | None:
        """The id of the token that the tokenizer itself takes for the end of a text."""
        return self.added.get(self.named.get(_EOS, ""))

    def text(self, token: int) -> str:
        return next((text for text, number in self.added.items() if number == token), str(token))


def check_ids(config: Mapping[str, Any], vocab: int, where: str) -> None:
    """Raise ConfigError with the edit for an id of config.json or generation_config.json outside the vocabulary."""
    for key in _IDS:
        for value in _listed(config.get(key)):
            if not _is_id(value, vocab):
                raise ConfigError(
                    f"{where}: {key}: {str(value)[:40]!r} is no token of a vocabulary of {vocab}",
                    f'set "{key}" to the id that {TOKENIZER} gives the token, or to null',
                )
    if isinstance(ids := config.get("eos_token_id"), list) and (not ids or len(ids) > _MOST_STOPS):
        raise ConfigError(f"{where}: eos_token_id: a list of {len(ids)} ids", f"name 1 to {_MOST_STOPS} ids")
    for key in _IDS[1:]:
        if isinstance(config.get(key), list):
            raise ConfigError(f"{where}: {key}: a list; one id is wanted")


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _is_id(value: Any, vocab: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab


def stop_ids(config: Mapping[str, Any], generation: Mapping[str, Any]) -> list[int]:
    """The ids of which each ends an answer, as the model's two configuration files name them; perhaps none."""
    ids = _listed(generation.get("eos_token_id")) or _listed(config.get("eos_token_id"))
    return list(dict.fromkeys(ids))


def read_generation(folder: Path) -> dict[str, Any]:
    """The generation_config.json of a model; empty without one. Raises ConfigError for one that can't be read."""
    path = folder / GENERATION_CONFIG
    return read_config(path) if path.is_file() else {}


def read_tokens(folder: Path, vocab: int) -> Tokens:
    """Read the tokenizer's files. Raises ConfigError, which names the file, for one that can't be read, and for tokens
    outside the model's vocabulary: a text that has one would end the runtime."""
    pipeline, settings = (read_config(folder / name, controls=True) for name in (TOKENIZER, TOKENIZER_CONFIG))
    added: dict[str, int] = {}
    for where, text, number in [*_added(pipeline, folder), *_decoder(settings, folder)]:
        if not _is_id(number, vocab):
            raise _outside(where, text, number, vocab)
        if added.setdefault(text, number) != number:
            raise ConfigError(
                f"{where}: token {text[:40]!r} has id {number}, and {added[text]} in {TOKENIZER}",
                "take both files from the same place, or save the tokenizer again with transformers",
            )
    _check_vocabulary(pipeline, folder, vocab)
    return Tokens(added, _named(settings, folder), _template(settings, folder))


def _added(pipeline: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str, Any]]:
    where = shown(folder / TOKENIZER)
    entries = pipeline.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{where}: added_tokens: not a list of tokens", "get the file again from the model's page")
    yield from ((where, str(entry.get("content")), entry.get("id")) for entry in entries)


def _decoder(settings: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str, Any]]:
    where = shown(folder / TOKENIZER_CONFIG)
    entries = settings.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict):
        raise ConfigError(f"{where}: added_tokens_decoder: not a table", "get the file again from the model's page")
    for number, entry in entries.items():
        if isinstance(entry, dict):
            yield where, str(entry.get("content")), int(number) if number.isdecimal() else number


def _outside(where: str, text: str, number: Any, vocab: int) -> ConfigError:
    return ConfigError(
        f"{where}: token {text[:40]!r} has id {str(number)[:40]}; the model has {vocab} (config.json: vocab_size)",
        "take the tokenizer and the weights from the same place; tokens that were added in training need weights: "
        "model.resize_token_embeddings(len(tokenizer)) before it",
    )


def _check_vocabulary(pipeline: Mapping[str, Any], folder: Path, vocab: int) -> None:
    model = pipeline.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    where = shown(folder / TOKENIZER)
    # A Unigram model's vocabulary is a list of pairs, whose places are the ids.
    if isinstance(words, list) and words:
        if len(words) > vocab:
            raise _outside(where, str(words[-1]), len(words) - 1, vocab)
        return
    if not isinstance(words, dict) or not words:
        raise ConfigError(f"{where}: model.vocab: missing", "get the file again from the model's page")
    for text, number in words.items():
        if not _is_id(number, vocab):
            raise _outside(where, text, number, vocab)


def _named(settings: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The texts of the tokenizer's named tokens; the map of special tokens tells those that its settings don't."""
    path = folder / _SPECIAL_TOKENS
    tables = [read_config(path, controls=True) if path.is_file() else {}, settings]
    named: dict[str, str] = {}
    for table in tables:
        for name in _NAMED:
            value = table.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                named[name] = text
    return named


def _template(settings: Mapping[str, Any], folder: Path) -> str | None:
    """The chat template that transformers takes: the file's, else that of the settings, of several the default one."""
    path = folder / TEMPLATE
    if path.is_file():
        try:
            return read_text_file(path)
        except (OSError, ValueError) as exc:
            raise ConfigError(f"{shown(path)}: cannot be read: {reason(exc)}") from exc
    template = settings.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = entries[0].get("template") if entries else None
    return template if isinstance(template, str) and template else None
