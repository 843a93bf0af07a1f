"""Folders of edgephi's own that are full, read-only or no folders: figures are printed all the same, and every error is
in words that name the folder and the way out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import builds
from tests.support.commands import edgephi
from tests.support.servers import needs_root, small_disk

RTN = "int4-rtn-b32"
NAME = f"phi3-nano-{RTN}"
KINDS = ("DATA", "CACHE", "CONFIG")
Spoil = Callable[[str], Path]


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spoil]:
    """Put one of edgephi's folders on a disk without a free byte."""
    with small_disk(tmp_path / "full", "64k") as disk:
        with (disk / "fill").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))

        def spoil(kind: str) -> Path:
            monkeypatch.setenv(f"EDGEPHI_{kind}_DIR", str(disk))
            return disk

        yield spoil


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spoil]:
    """Put one of edgephi's folders on a disk that is mounted read-only."""
    with small_disk(tmp_path / "read-only", "64k") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

        def spoil(kind: str) -> Path:
            monkeypatch.setenv(f"EDGEPHI_{kind}_DIR", str(disk))
            return disk

        yield spoil


@pytest.fixture
def no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Have a file where one of edgephi's folders belongs."""
    path = tmp_path / "a-file"
    path.write_text("in the way")

    def spoil(kind: str) -> Path:
        monkeypatch.setenv(f"EDGEPHI_{kind}_DIR", str(path))
        return path

    return spoil


REASONS = {
    "full": ("No space left on device", "free some space: the disk is full"),
    "read_only": ("Read-only file system", "its file system is mounted read-only; set {variable} to another folder"),
    "no_folder": ("{path} is a file where a folder is needed", "set {variable} to another folder"),
}
FAULTS = [pytest.param(name, marks=[] if name == "no_folder" else needs_root) for name in REASONS]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bench_prints_the_figures_that_it_cannot_keep(
    request: pytest.FixtureRequest, tmp_path: Path, local: Path, fault: str
) -> None:
    builds.seed_cache(tmp_path / "cache", RTN)
    path = request.getfixturevalue(fault)("DATA")
    done = edgephi("bench", NAME, "-w", "quick", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]) == 1
    reason, hint = (text.format(path=path, variable="EDGEPHI_DATA_DIR") for text in REASONS[fault])
    warning = next(line for line in done.stderr.splitlines() if "the report isn't kept" in line)
    assert warning.startswith(f"warning: the report isn't kept: {path}/reports/")
    assert f": cannot be written: {reason} ({hint}" in warning
    assert local.is_dir()


def test_a_bench_prints_the_figures_that_its_file_does_not_take(tmp_path: Path, local: Path) -> None:
    builds.seed_cache(tmp_path / "cache", RTN)
    done = edgephi("bench", NAME, "-w", "quick", "-o", "missing/report.json")
    assert done.returncode == 3
    assert "decode" in done.stdout and local.is_dir()
    assert done.stderr.endswith(
        "error: missing/report.json: cannot be written: No such file or directory\n"
        f" hint: the figures are above, and all of the report in {tmp_path}/data/reports\n"
    )


COMMANDS = {
    ("CONFIG", "targets add six pi@six.local --profile raspberry-pi-5-8gb"): 3,
    ("CACHE", f"optimize phi3-nano -p local -r {RTN} --no-check"): 3,
    ("DATA", f"optimize phi3-nano -p local -r {RTN} --no-check"): 3,
    ("DATA", f"deploy {NAME} local second"): 3,
}


@needs_root
@pytest.mark.parametrize(("kind", "command"), COMMANDS, ids=lambda text: text.split()[0])
def test_commands_on_a_read_only_disk_end_in_words(read_only: Spoil, tmp_path: Path, kind: str, command: str) -> None:
    if command.startswith("deploy"):
        builds.seed_cache(tmp_path / "cache", RTN)
        targets = tmp_path / "config" / "targets"
        targets.mkdir(parents=True)
        (targets / "second.toml").write_text('transport = "local"\nprofile = "local"\ninstall_root = "~/second"\n')
    disk = read_only(kind)
    done = edgephi(*command.split())
    assert done.returncode == 3, done.stderr
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith(f"error: {disk}/") and error.endswith(": Read-only file system")
    assert hint == f" hint: its file system is mounted read-only; set EDGEPHI_{kind}_DIR to another folder"


@needs_root
def test_a_log_that_its_disk_does_not_take_is_told_of(full: Spoil) -> None:
    disk = full("DATA")
    done = edgephi("optimize", "phi3-nano", "-p", "local", "-r", RTN, "--no-check")
    assert done.returncode == 5
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith(f"error: the disk of the build's log became full ({disk}/logs/olive-")
    assert hint == " hint: free some space, or set EDGEPHI_DATA_DIR to another disk"


@needs_root
def test_an_output_folder_on_a_full_disk_leaves_nothing_half_made(full: Spoil, tmp_path: Path) -> None:
    builds.seed_cache(tmp_path / "cache", RTN)
    disk = full("UNUSED")
    done = edgephi("optimize", "phi3-nano", "-p", "local", "-r", RTN, "--no-check", "-o", str(disk / "out"))
    assert done.returncode == 3
    assert done.stderr.endswith(
        f"error: {disk}/out: cannot be written: No space left on device\n"
        " hint: free some space: the disk is full; or take another folder\n"
    )
    assert [path.name for path in disk.iterdir()] == ["fill"]


def test_too_few_open_files() -> None:
    done = subprocess.run(
        ["bash", "-c", f"ulimit -n 6; exec {sys.executable} -m toolkit doctor"], capture_output=True, text=True
    )
    assert done.returncode == 3
    assert done.stderr.endswith("error: Too many open files\n hint: raise the limit on open files: ulimit -n 4096\n")


def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import tempfile

    from toolkit.cli import _run, cli

    def broken(*_: object, **__: object) -> None:
        tempfile.gettempdir()

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    monkeypatch.setattr(cli, "main", broken)
    assert _run([]) == 3
    assert capsys.readouterr().err == (
        "error: there is no temporary folder that can be written\n hint: set TMPDIR to one\n"
    )
