"""toolkit.optimize.calibration: texts, and texts that are too short."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from toolkit.catalog.model import shipped_model
from toolkit.config import shipped_dir
from toolkit.errors import ConfigError
from toolkit.optimize.calibration import read_texts, token_ids

PROSE = "In the beginning God created the heaven and the earth."


def model() -> Path:
    found = shipped_model("phi3-nano")
    assert found is not None
    return found.folder


def written(name: str, text: str) -> Path:
    Path(name).write_text(text, encoding="utf-8")
    return Path(name)


def test_json_lines() -> None:
    lines = json.dumps({"text": "one\n\nstill one"}) + "\n\n" + json.dumps({"text": "two", "id": 2}) + "\n"
    assert list(read_texts(written("c.jsonl", lines))) == ["one\n\nstill one", "two"]


def test_plain_text_by_paragraphs() -> None:
    assert list(read_texts(written("c.txt", "one\nline\n\ntwo"))) == ["one\nline", "two"]


@pytest.mark.parametrize("line", ["not json", "[]", '{"txt": "x"}', '{"text": 3}', "3"])
def test_wrong_line_is_named(line: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.jsonl:2"):
        list(read_texts(written("c.jsonl", f'{{"text": "x"}}\n{line}\n')))


def test_not_utf8() -> None:
    Path("c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        list(read_texts(Path("c.txt")))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.txt", "one\n\ntwo\0", "c.txt: no model can read this text: line 3, column 4 is a NUL character"),
        (
            "c.jsonl",
            '{"text": "x"}\n{"text": "a\\u0000b"}\n',
            'c.jsonl:2: no model can read its "text": line 1, column 2',
        ),
        ("c.jsonl", '{"text": "\\ud800"}\n', "c.jsonl:1: not JSON: "),
    ],
)
def test_text_that_no_tokenizer_takes(name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        list(read_texts(written(name, text)))


def test_ids_are_the_first_of_the_text() -> None:
    many = token_ids(shipped_dir("recipes").parent / "calibration.jsonl", model(), 4096)
    assert len(many) == 4096
    assert token_ids(shipped_dir("recipes").parent / "calibration.jsonl", model(), 100) == many[:100]


@pytest.mark.parametrize("text", ["", PROSE])
def test_too_little_text(text: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.txt: \d+ tokens of text; the recipe calibrates with 4096"):
        token_ids(written("c.txt", text), model(), 4096)
