"""Calibration text, which data-aware passes read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from toolkit.config import shown
from toolkit.errors import ConfigError
from toolkit.untrusted import read_json, read_text_file, reason, text_problem

# Olive puts this between texts.
JOINER = "\n\n"
LARGEST_TEXT_BYTES = 256 << 20
_LINES = 'one a line: {"text": "…"}; plain text in a .txt'


def read_texts(file: Path) -> Iterator[str]:
    """The texts of a calibration file: paragraphs of a `.txt`, the `text` of every line of a `.jsonl`.

    Raises ConfigError naming the line that is wrong.
    """
    try:
        content = read_text_file(file, LARGEST_TEXT_BYTES)
    except (OSError, ValueError) as exc:
        message = f"{shown(file)}: cannot be read as UTF-8 text: {reason(exc)}"
        raise ConfigError(message, "a few hundred kilobytes of prose are plenty") from exc
    if problem := text_problem(content):
        raise ConfigError(f"{shown(file)}: no model can read this text: {problem}", "take that character out")
    if file.suffix == ".txt":
        yield from content.split("\n\n")
        return
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield _text_of(line, f"{shown(file)}:{number}")


def _text_of(line: str, where: str) -> str:
    try:
        text = read_json(line.encode(), controls=True)["text"]
    except ValueError as exc:
        raise ConfigError(f"{where}: not JSON: {exc}", _LINES) from exc
    except (TypeError, LookupError):
        text = None
    if not isinstance(text, str):
        raise ConfigError(f'{where}: not a JSON object with a "text"', _LINES)
    if problem := text_problem(text):
        raise ConfigError(f'{where}: no model can read its "text": {problem}', "take that character out")
    return text


def token_ids(file: Path, model: Path, count: int) -> list[int]:
    """The first `count` token ids of a calibration text in the vocabulary of the model folder `model`.

    Raises ConfigError when it has fewer: calibrating with too little text would silently do nothing.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    # The library in Rust raises nothing more special than Exception.
    except Exception as exc:
        message = f"{shown(model / 'tokenizer.json')}: not a tokenizer: {str(exc)[:200]}"
        raise ConfigError(message, "copy it again from the model's page") from exc
    ids: list[int] = []
    for text in read_texts(file):
        ids += tokenizer.encode(text + JOINER, add_special_tokens=False).ids
        if len(ids) >= count:
            return ids[:count]
    raise ConfigError(
        f"{shown(file)}: {len(ids)} tokens of text; the recipe calibrates with {count}",
        "give more text, or a recipe with fewer [calibration] samples or sequence_tokens",
    )
