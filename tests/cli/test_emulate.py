from __future__ import annotations

import json

import pytest

from tests.support.emulated import board
from toolkit.cli import main


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["emulate", *argv])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_no_boards(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "no emulated boards; edgephi emulate start raspberry-pi-5" in capsys.readouterr().err
    assert run("list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    board("pi")
    assert run("list") == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("pi")]
    assert row.split()[:5] == ["pi", "raspberry-pi-5", "raspberry-pi-5-8gb", "stopped", "127.0.0.1:2222"]
    assert run("list", "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["disk_bytes"] > 1000 and not entry["running"]


def test_stopping_and_removing(capsys: pytest.CaptureFixture[str]) -> None:
    board("pi")
    board("other")
    assert run("stop", "pi") == 0
    assert capsys.readouterr().out == "pi: wasn't running\n"
    assert run("remove", "pi", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"removed": ["pi"], "shared": False}
    assert run("remove", "--all") == 0
    assert capsys.readouterr().out == "removed: other; and their shared Debian\n"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("start", "raspberry-pi-6"), 3, "unknown board 'raspberry-pi-6' (did you mean 'raspberry-pi-5'?)"),
        (("stop", "pi"), 3, "unknown board 'pi'"),
        (("remove",), 2, "name the boards, or --all"),
        (("remove", "pi", "--all"), 2, "name the boards, or --all"),
    ],
)
def test_mistakes(argv: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == code
    assert message in capsys.readouterr().err
