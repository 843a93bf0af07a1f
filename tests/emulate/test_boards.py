"""Boards as files and processes, without an emulator: the board tests run one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.emulated import board
from toolkit.catalog import Target
from toolkit.catalog.target import save_target
from toolkit.config import config_dir
from toolkit.emulate import boards, find_board, list_states
from toolkit.emulate.boards import (
    boards_dir,
    check_machine,
    load_state,
    remove,
    sshd_config,
    start,
    start_argv,
    start_ticks,
    stop,
)
from toolkit.errors import ConfigError

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are read from /proc")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a group of its own and a child in that group."""
    child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, start_new_session=True)
    yield child
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


@needs_linux
def test_a_board_runs_until_it_is_stopped_with_everything_on_it(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    sleeper = int(process.stdout.readline())
    board("pi", pid=process.pid, started_ticks=start_ticks(process.pid))
    assert load_state("pi").running
    assert stop("pi") is True
    assert start_ticks(sleeper) is None and not load_state("pi").running
    assert stop("pi") is False


@needs_linux
def test_a_number_that_another_process_has_by_now_isnt_the_board(process: subprocess.Popen[bytes]) -> None:
    board("pi", pid=process.pid, started_ticks=1)
    assert not load_state("pi").running
    assert stop("pi") is False
    assert process.poll() is None


def test_a_board_whose_process_is_gone_is_stopped() -> None:
    # No process can have this id.
    board("pi", pid=2**22 + 1, started_ticks=7)
    assert not load_state("pi").running
    board("off")
    assert [state.name for state in list_states()] == ["off", "pi"]


def test_what_isnt_a_board_is_none() -> None:
    board("pi")
    (boards_dir() / "half").mkdir()
    (boards_dir() / "odd").mkdir()
    (boards_dir() / "odd" / "state.json").write_text("{")
    assert [state.name for state in list_states()] == ["pi"]
    with pytest.raises(ConfigError) as caught:
        load_state("half")
    assert (caught.value.message, caught.value.hint) == ("unknown board 'half'", "emulated boards: pi")


def test_removing_a_board_removes_its_target_and_nobody_elses() -> None:
    key = boards_dir() / "pi" / "keys" / "client_key"
    ours = Target(name="pi", host="127.0.0.1", profile="local", identity_file=key)
    theirs = Target(name="other", host="127.0.0.1", profile="local")
    paths = [save_target(target, config_dir() / "targets") for target in (ours, theirs)]
    for name in ("pi", "other"):
        board(name)
        remove(name)
    assert [path.exists() for path in paths] == [False, True]
    assert list_states() == []


def test_a_board_never_takes_the_name_of_a_target() -> None:
    save_target(Target(name="pi5", host="pi5.local", profile="raspberry-pi-5-8gb"), config_dir() / "targets")
    with pytest.raises(ConfigError) as caught:
        next(start(*find_board("raspberry-pi-5"), "pi5"))
    assert caught.value.message.startswith("target 'pi5' exists already: ")
    assert caught.value.hint == "--name gives the board another one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("localhost.arch", lambda: "aarch64"),
            "boards are emulated on x86_64 with Linux; this machine is aarch64 with",
        ),
        (("localhost.system", lambda: "darwin"), "with darwin"),
        (("os.geteuid", lambda: 1000), "emulating a board takes root: it mounts file systems"),
        (("shutil.which", lambda tool: None if tool == "mmdebstrap" else tool), "not installed here: mmdebstrap"),
    ],
)
def test_what_this_machine_lacks(change: tuple[str, object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards.localhost, "arch", lambda: "x86_64")
    monkeypatch.setattr(boards.localhost, "system", lambda: "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(boards.shutil, "which", lambda tool: tool)
    check_machine()
    module, _, name = change[0].partition(".")
    monkeypatch.setattr(getattr(boards, module), name, change[1])
    with pytest.raises(ConfigError) as caught:
        check_machine()
    assert message in caught.value.message
    assert caught.value.hint


def test_the_process_of_a_board_and_its_sshd() -> None:
    argv = start_argv("pi", Path("/root-fs"), Path("/boards/pi"))
    assert argv[0] == "unshare" and {"--mount", "--pid", "--fork", "--kill-child"} <= set(argv)
    assert argv[-3:] == ["pi", "/root-fs", "/boards/pi"] and Path(argv[-4]).is_file()
    config = sshd_config(find_board("raspberry-pi-4")[0], 2222)
    assert "ListenAddress 127.0.0.1\nPort 2222\n" in config
    assert "SetEnv QEMU_CPU=cortex-a72\n" in config and "PasswordAuthentication no\n" in config
