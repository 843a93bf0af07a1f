"""Ends of the process: signals, streams that can't be written, logs of bugs that can't be kept where they belong."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit.cli import _run, cli

# A command that is at work, with a bar on the terminal, until a signal comes; then it needs a while to clean up.
AT_WORK = """\
import sys, time
from pathlib import Path
import click
from toolkit.cli import cli, main, render
from toolkit.events import Progress

def work():
    try:
        while True:
            yield Progress("work", 1, 2)
            Path("at-work").touch()
            time.sleep(0.05)
    finally:
        time.sleep(0.5)
        Path("cleaned").touch()

@click.command()
def busy():
    render.follow(work())

cli.get_command = lambda *_: busy
main(["demo"])
"""


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def busy(**options: object) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", AT_WORK], **options)  # type: ignore[call-overload]
    wait_for(Path("at-work"))
    assert isinstance(process, subprocess.Popen)
    return process


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, b"terminated"), (signal.SIGHUP, 129, b"hung up")]
)
def test_a_signal_cleans_up_and_gives_the_terminal_back(number: int, code: int, word: bytes) -> None:
    ours, theirs = pty.openpty()
    process = busy(stderr=theirs)
    os.close(theirs)
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)
    said = b""
    while chunk := _read(ours):
        said += chunk
    assert process.wait(10) == code
    assert Path("cleaned").exists(), "a second signal doesn't disturb the cleaning"
    assert said.count(b"\x1b[?25l") == said.count(b"\x1b[?25h") > 0, "the cursor is shown again"
    assert said.rstrip().endswith(word)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def test_a_terminal_that_goes_takes_the_work_with_it_cleanly(tmp_path: Path) -> None:
    pid, ours = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", AT_WORK])
    wait_for(Path("at-work"))
    os.close(ours)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    assert Path("cleaned").exists()
    assert not list((tmp_path / "data").rglob("bug-*"))


def test_nohup_keeps_a_command_at_work() -> None:
    process = busy(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143


@pytest.mark.parametrize("arguments", ["profiles list", "profiles list --json", "--help", "profiles schema"])
def test_a_full_disk_below_stdout(arguments: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -m toolkit {arguments} > /dev/full", shell=True, stderr=subprocess.PIPE, text=True
    )
    assert done.stderr == "error: stdout: cannot be written: No space left on device\n hint: the result is lost\n"
    assert done.returncode == 1


def test_closed_streams() -> None:
    def ran(redirection: str) -> tuple[int, str]:
        command = f"{sys.executable} -m toolkit recipes list --json {redirection}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        return done.returncode, done.stderr

    assert ran(">&-") == (1, "error: stdout: cannot be written: Bad file descriptor\n hint: the result is lost\n")
    assert ran("2>&-") == (0, "")
    assert ran("<&-") == (0, "")


def test_talk_that_is_lost_ends_no_work() -> None:
    command = f"{sys.executable} -m toolkit bundle list 2>/dev/full"
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(cli, "main", broken)


@pytest.mark.usefixtures("bug")
def test_the_log_of_a_bug_goes_elsewhere_where_the_data_folder_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").write_text("in the way")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "work"))
    assert _run([]) == 70
    (log,) = (tmp_path / "work").glob("bug-*.log")
    assert "ZeroDivisionError: boom" in log.read_text()
    assert capsys.readouterr().err == (
        f"error: this is a bug in edgephi\n hint: the traceback is in {log}; please report it with that file\n"
    )


@pytest.mark.usefixtures("bug")
def test_the_traceback_of_a_bug_is_printed_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").write_text("in the way")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere" / "data"))
    (tmp_path / "nowhere").write_text("in the way")
    assert _run([]) == 70
    said = capsys.readouterr().err
    assert "ZeroDivisionError: boom" in said
    assert said.endswith(" hint: the traceback is above; please report it with that text\n")
