"""trust and --trust-folder, as typed, and the words of commands in a folder that isn't trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import edgephi
from toolkit.catalog.trust import examine
from toolkit.config import config_dir, shipped_dir

HINT = " hint: read its files, then type: edgephi trust (or say --trust-folder)\n"


@pytest.fixture(autouse=True)
def folder(isolated: Path) -> Path:
    (isolated / "profiles").mkdir()
    text = 'schema_version = 1\nextends = "local"\n[runtime]\npackages = ["edgephi-speedups==1.0"]\n'
    (isolated / "profiles/local.toml").write_text(text)
    return isolated


def test_refused_shown_trusted_and_forgotten(folder: Path) -> None:
    hides = shipped_dir("profiles") / "local.toml"
    warning = f"warning: profiles/local.toml is read instead of {hides}: files of the working folder come first\n"
    done = edgephi("profiles", "show", "local")
    words = f"error: profiles/local.toml: runtime.packages: needs your trust in this folder, {folder}\n"
    assert (done.returncode, done.stderr) == (3, warning + words + HINT)
    shown = json.loads(edgephi("trust", "--show", "--json").stdout)
    file = {"path": str(folder / "profiles/local.toml"), "hides": str(hides), "keys": ["runtime.packages"]}
    assert shown == {"folder": str(folder), "trusted": False, "files": [file | {"state": "new"}]}
    done = edgephi("trust")
    assert done.returncode == 0
    assert done.stderr == f"{folder}: trusted as it is now; edgephi trust --forget takes that back\n"
    done = edgephi("profiles", "show", "local")
    assert (done.returncode, done.stderr) == (0, warning)
    assert "edgephi-speedups==1.0" in done.stdout
    assert edgephi("trust", "--forget").stderr == f"{folder}: not trusted any more\n"
    assert edgephi("trust", "--forget").stderr == f"{folder}: wasn't trusted\n"
    assert edgephi("profiles", "show", "local").returncode == 3


def test_the_option_of_a_command() -> None:
    done = edgephi("profiles", "show", "local", "--trust-folder", "--json")
    assert done.returncode == 0
    assert done.stderr.startswith("trusted in this folder, as they are now: profiles/local.toml\nwarning: ")
    assert [file.state for file in examine()] == ["trusted"]


def test_a_folder_without_such_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = edgephi("trust")
    words = f"{tmp_path}: no profiles, targets or other files that need trust\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "", words)


def test_lists_leave_it_out_and_say_so(folder: Path) -> None:
    (folder / "targets").mkdir()
    (folder / "targets/pi9.toml").write_text('host = "pi9"\nprofile = "local"\npython = "/x"\n')
    done = edgephi("targets", "list")
    assert done.returncode == 0
    assert next(line for line in done.stdout.splitlines() if "pi9" in line).split()[:3] == ["pi9", "not", "trusted"]
    reason = f"targets/pi9.toml: python: needs your trust in this folder, {folder}: "
    assert f"warning: {reason}read its files, then type: edgephi trust" in done.stderr
    done = edgephi("inventory", "--ansible", "--host", "pi9")
    assert (done.returncode, done.stderr) == (3, f"error: {reason[:-2]}\n{HINT}")


def test_names_that_differ_only_in_case(folder: Path) -> None:
    assert edgephi("targets", "add", "pi5", "h", "--profile", "raspberry-pi-5-8gb").returncode == 0
    done = edgephi("targets", "add", "Pi5", "h", "--profile", "raspberry-pi-5-8gb", "--force")
    first = config_dir() / "targets/pi5.toml"
    words = "targets 'pi5' and 'Pi5' differ only in case or accents: on Windows and macOS they are one file"
    assert (done.returncode, done.stderr) == (3, f"error: {words}\n hint: give one of them another name: {first}\n")
    second = first.with_name("PI5.toml")
    second.write_text(first.read_text())
    done = edgephi("targets", "show", "pi5")
    words = "targets 'PI5' and 'pi5' differ only in case or accents: on Windows and macOS they are one file"
    assert done.returncode == 3
    assert done.stderr == f"error: {words}\n hint: give one of them another name: {second}, {first}\n"
    (folder / "profiles/Raspberry-Pi-5-8GB.toml").write_text('schema_version = 1\nextends = "local"\n')
    done = edgephi("profiles", "show", "raspberry-pi-5-8gb")
    assert done.returncode == 3
    assert "profiles 'Raspberry-Pi-5-8GB' and 'raspberry-pi-5-8gb' differ only in case or accents" in done.stderr
