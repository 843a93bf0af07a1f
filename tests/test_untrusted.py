"""toolkit.untrusted: JSON and file names from others."""

from __future__ import annotations

import pytest

from tests.support import hostile
from toolkit.untrusted import is_this_machine, path_clash, path_problem, read_json


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
