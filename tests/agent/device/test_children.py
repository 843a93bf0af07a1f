"""A runtime's process: its last words reach the user, and the user's settings of Python don't reach it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.pythons import script
from tests.support.requests import LOCK, ask
from toolkit.agent.device import protocol


def run(root: Path, *lines: str) -> dict[str, Any]:
    """The error of a load check in a runtime whose Python is a script of these lines."""
    script(root / "runtimes" / LOCK / "venv" / "bin" / "python", *lines)
    (root / "runtimes" / LOCK / "ready.json").write_text("{}")
    error: dict[str, Any] = ask(root, "check", runtime=LOCK, model_folder=str(root), prompt="x", tokens=4)["error"]
    return error


def test_the_last_words_of_an_abort(root: Path) -> None:
    said = "terminate called after throwing an instance of 'std::bad_alloc'"
    error = run(root, f'echo "{said}" >&2', "kill -ABRT $$")
    assert error["message"] == f"the runtime's process ended with SIGABRT: {said}"
    assert error["code"] == "child_died"


def test_the_last_words_before_an_exit_code(root: Path) -> None:
    lines = ['echo "Traceback (most recent call last):" >&2', 'echo "ValueError: no such layer" >&2', "echo >&2"]
    assert run(root, *lines, "exit 3")["message"] == (
        "the runtime's process ended with exit code 3: ValueError: no such layer"
    )


def test_a_silent_end(root: Path) -> None:
    assert run(root, "exit 3")["message"] == "the runtime's process ended with exit code 3"


def test_words_that_would_steer_a_terminal(root: Path) -> None:
    error = run(root, r"printf '\033]0;owned\007\302\233red\342\200\256 words\n' >&2", "exit 1")
    assert error["message"] == "the runtime's process ended with exit code 1: ]0;owned red words"


def test_words_without_end(root: Path) -> None:
    error = run(root, "head -c 3000000 /dev/zero | tr '\\0' x >&2", "exit 1")
    assert error["message"].endswith("x…")
    assert len(error["message"]) < 500


def test_a_process_that_leaves_another_one_behind(root: Path) -> None:
    error = run(root, "echo last words >&2", "sleep 30 >/dev/null &", "exit 1")
    assert error["message"] == "the runtime's process ended with exit code 1: last words"


@pytest.mark.parametrize(
    ("text", "line"),
    [("", ""), ("\n \n", ""), ("a\nb  c\t d\n\n", "b c d"), ("x" * 500, "x" * 399 + "…"), ("a\x00b", "a b")],
)
def test_last_words(text: str, line: str) -> None:
    assert protocol.last_words(text) == line


def test_the_environment(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONSTARTUP", "PIP_USER"):
        monkeypatch.setenv(name, str(tmp_path))
    message = run(root, 'env | grep -c "PYTHON[PS]\\|PIP_U" >&2', 'echo "$1 $2" >&2', "exit 1")["message"]
    assert message.endswith("exit code 1: -I -u")
    assert run(root, 'env | grep -c "PYTHON[PS]\\|PIP_U" >&2', "exit 1")["message"].endswith("exit code 1: 0")
