"""toolkit.untrusted: JSON and file names from others."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tests.support import hostile, untrusted_inputs
from tests.support.untrusted_inputs import AWKWARD_FILES, held
from toolkit.untrusted import (
    is_this_machine,
    path_clash,
    path_problem,
    read_file,
    read_json,
    read_json_file,
    read_text_file,
    reason,
    text_problem,
    visible,
    visible_json,
)


@pytest.mark.parametrize("path", [*hostile.PATHS[:-5], *hostile.CONTROL_PATHS])
def test_paths_that_may_leave_or_mean_something_else(path: str) -> None:
    assert path_problem(path)


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b/c",
        "model.onnx.data",
        ".hidden",
        "-rf",
        "two words",
        "$(id)",
        "it's",
        "äö €",
        "console",
        "com10",
        "a..b",
    ],
)
def test_paths_that_are_plain_files_everywhere(path: str) -> None:
    assert path_problem(path) is None


@pytest.mark.parametrize(("paths", "why"), hostile.CLASHES)
def test_paths_that_exclude_each_other(paths: list[str], why: str) -> None:
    found = path_clash(paths)
    assert found is not None and why in found
    assert path_clash(reversed(paths)) is not None


def test_paths_that_fit_together() -> None:
    assert path_clash(["a", "a.b", "ab/c", "b/a", "b/a b"]) is None


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\xff", "not UTF-8 text"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[" * 33 + b"]" * 33, "nested too deep"),
        (b"[" * 100_000, "nested too deep"),
        (b'["\\u001b[2J"]', "control characters"),
        (b'{"\\u0000": 1}', "control characters"),
        (b'["\\ud800"]', "control characters"),
        (b"{", "Expecting property name"),
    ],
)
def test_json_that_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_json(raw)


def test_json_that_is_read() -> None:
    assert read_json(b'{"a": ["\xc3\xa4", 1.5, null, "\\ud83d\\ude00"]}') == {"a": ["ä", 1.5, None, "😀"]}
    assert read_json(b"[" * 32 + b"]" * 32)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"[1e999]", "1e999 is larger than any number here"),
        (b"[" + b"9" * 5000 + b"]", "… has 5000 digits"),
        (b'["\\ud800"]', "control characters"),
        (b"[" * 60_000, "nested too deep"),
    ],
)
def test_json_that_is_refused_with_controls_in_it(raw: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_json(raw, controls=True)


def test_tokenizers_have_control_characters_and_no_limit() -> None:
    found = read_json(
        b'{"chat_template": "a\\n\\u001b", "model_max_length": 1000000000000000019884624838656}', controls=True
    )
    assert found == {"chat_template": "a\n\x1b", "model_max_length": 1000000000000000019884624838656}


@pytest.mark.parametrize("kind", AWKWARD_FILES)
def test_what_stands_where_a_file_is_expected(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "here"
    AWKWARD_FILES[kind](path)
    for read in (read_json_file, read_text_file):
        with pytest.raises((OSError, ValueError)) as caught:
            read(path)
        assert "\n" not in reason(caught.value) and str(tmp_path) not in reason(caught.value)


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 5000])
def test_names_that_no_file_can_have(path: str) -> None:
    with pytest.raises(OSError, match=r"no file can have that name|too long"):
        read_file(path, 10)


def test_a_file_has_at_most_so_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a\r\nb\rc")
    assert read_file(path, 6) == b"a\r\nb\rc"
    assert read_text_file(path) == "a\nb\nc"
    with pytest.raises(OSError, match="longer than 5 bytes"):
        read_file(path, 5)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Ärger, 日本語, 🏳️‍🌈, می‌خواهم", "plain, Ärger, 日本語, 🏳️‍🌈, می‌خواهم"),
        ("\x1b]0;title\x07\x1b[31m", r"\x1b]0;title\x07\x1b[31m"),
        ("\x9b31m\x7f\x85", r"\x9b31m\x7f\x85"),
        ("a\r\n\tb", r"a\r\n\tb"),
        ("\u202egnp.exe\u2066\u2069\u200f", r"\u202egnp.exe\u2066\u2069\u200f"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("\u200b\ufeff\u00ad\U000e0041", r"\u200b\ufeff\xad\U000e0041"),
        ("\ud83d \udfff", r"\ud83d \udfff"),
    ],
)
def test_nothing_steers_a_terminal_and_nothing_hides(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


def test_json_means_the_same_when_it_is_safe_to_draw() -> None:
    value = {"\x7f\x9b": ["\u202e\u2028\U000e0041 é 日", "\x1b\ud800"]}
    text = visible_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(text) == value
    assert text == visible(text, keep="\n")
    assert "é 日" in text


@pytest.mark.fuzz
@given(untrusted_inputs.raw({"a": [1, "two", {"b": None}], "c": "\x1b"}))
def test_any_bytes_are_json_or_refused(raw: bytes) -> None:
    for controls in (False, True):
        found = held(lambda controls=controls: read_json(raw, controls=controls), ValueError)
        if not isinstance(found, ValueError):
            json.dumps(found, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.fuzz
@given(st.text(st.characters()))
def test_controls_can_be_drawn(text: str) -> None:
    shown = visible(text)
    assert shown == visible(shown)
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cs", "Zl", "Zp"}
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert not {unicodedata.bidirectional(character) for character in shown} & turning
    shown.encode()


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost.", "a.localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1"),
        *("0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "fe80::1%eth0", "169.254.169.254", "\uff11\uff12\uff17.0.0.1"),
    ],
)
def test_this_machine_by_every_spelling(host: str) -> None:
    assert is_this_machine(host)


@pytest.mark.parametrize("host", ["", "localhost.example.com", "128.0.0.1", "10.0.0.1", "::2", "127.0.0.1.example.com"])
def test_other_machines(host: str) -> None:
    assert not is_this_machine(host)


def test_control_characters_for_those_who_clean() -> None:
    assert read_json(b'["\\u001b"]', controls=True) == ["\x1b"]
    with pytest.raises(ValueError, match="control characters"):
        read_json(b'["\\u001b"]')
    with pytest.raises(ValueError, match="nested too deep"):
        read_json(b"[" * 60_000, controls=True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a\0b", "line 1, column 2 is a NUL character, and a model would read nothing behind it"),
        ("\0", "line 1, column 1 is a NUL character, and a model would read nothing behind it"),
        ("one\ntwo\n\0", "line 3, column 1 is a NUL character, and a model would read nothing behind it"),
        (os.fsdecode(b"caf\xe9"), "line 1, column 4 is the byte 0xe9, which isn't UTF-8 text"),
        ("x\n\ud83d", "line 2, column 1 is half a character, \\ud83d"),
    ],
)
def test_text_that_no_tokenizer_takes(text: str, problem: str) -> None:
    assert text_problem(text) == problem


@given(st.text())
def test_text_without_a_problem_is_a_c_string_of_utf8(text: str) -> None:
    assert (text_problem(text) is None) == ("\0" not in text)
    text.encode()
