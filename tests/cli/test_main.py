"""The command line's frame: help, exit codes, imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.support.paths import REPO
from toolkit import __version__
from toolkit.cli import COMMANDS, _run, cli, main
from toolkit.errors import HostUnreachable
from toolkit.events import Step, announce

HEAVY = {
    "paramiko",
    "rich",
    "pydantic",
    "olive",
    "torch",
    "onnxruntime",
    "onnxruntime_genai",
    "transformers",
    "numpy",
    "urllib3",
}


def run_edgephi(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "toolkit", *args], capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, json\n"
        "from toolkit.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(json.dumps([n for n in sys.modules if '.' not in n]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(json.loads(done.stderr.splitlines()[-1]))
    assert "optimize" in done.stdout


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_line_in_help_is_the_commands_own(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert COMMANDS[name][1] == (command.help or "").split("\n")[0]


def test_version() -> None:
    assert run_edgephi("--version").stdout == f"edgephi, version {__version__}\n"


def test_a_mistyped_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["optimise"]) == 2
    assert "no such command 'optimise' (did you mean 'optimize'?)" in capsys.readouterr().err


def test_an_expected_error_prints_message_and_hint_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _run(["releases", "pi55"]) == 3
    err = capsys.readouterr().err
    assert "error: unknown target 'pi55'" in err
    assert "hint:" in err
    assert "Traceback" not in err


def test_a_bug_is_70_with_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(cli, "main", broken)
    assert _run([]) == 70
    err = capsys.readouterr().err
    assert "this is a bug in edgephi" in err
    log = Path(err.split("traceback is in ")[1].split(";")[0])
    assert "ZeroDivisionError: boom" in log.read_text()


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    assert _run([]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m toolkit profiles schema | head -c 1", shell=True, capture_output=True, text=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    assert "_EDGEPHI_COMPLETE" in run_edgephi("completion", shell).stdout


@pytest.mark.parametrize(
    ("words", "index", "found"),
    [
        ("edgephi ro", 1, "plain,rollback\nplain,rollouts"),
        ("edgephi releases lo", 2, "plain,local"),
        ("edgephi optimize m --profile jetson-agx", 4, "plain,jetson-agx-orin-64gb"),
        ("edgephi bench local -w qual", 4, "plain,quality"),
        ("edgephi run phi3-nano lo", 3, "plain,local"),
        ("edgephi deploy b local @a", 4, "plain,@all"),
        # bash itself ends a word at an @.
        ("edgephi deploy b local @ a", 5, "plain,@all"),
    ],
)
def test_completion_knows_commands_and_names(words: str, index: int, found: str) -> None:
    env = os.environ | {"_EDGEPHI_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(index)}
    assert run_edgephi(env=env).stdout.strip() == found


def test_generated_documents_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "maintenance.docs", "--check"], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_is_announced_is_drawn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command whose connection has something to tell before it yields any event."""

    def connect(*_: object, **__: object) -> None:
        announce(Step("pi5 says: visit https://login.example/"))
        raise HostUnreachable("enough")

    monkeypatch.setattr("toolkit.device.session.connect", connect)
    with pytest.raises(SystemExit):
        main(["targets", "probe", "local"])
    assert "pi5 says: visit https://login.example/\n" in capsys.readouterr().err
