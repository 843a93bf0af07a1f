"""The doctor on this machine."""

from __future__ import annotations

import shutil
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.paths import REPO
from toolkit.config import config_dir
from toolkit.jobs.doctor import examine_host, exit_code
from toolkit.jobs.doctor.host import extra_pins, judge_extra


def test_this_machine() -> None:
    found = list(examine_host())
    assert [check.name for check in found] == [
        *("python", "optimize extra", "disk", "memory", "ssh client", "profiles", "targets", "recipes")
    ]
    states = {check.name: check.state for check in found}
    for name in ("python", "optimize extra", "profiles", "targets", "recipes"):
        assert states[name] == "ok", found
    assert exit_code(None, found) == 0


def test_broken_files_are_named_each() -> None:
    for kind, name, text in (
        ("profiles", "bad", 'schema_version = 1\nextends = "local"\ndecription = "x"\n'),
        ("targets", "lost", 'host = "x"\nprofile = "nowhere"\n'),
        ("recipes", "odd", 'description = "x"\nalgorithm = "awq"\n'),
    ):
        path = config_dir() / kind / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = {check.name: check for check in examine_host()}
    assert found["profiles"].state == found["targets"].state == found["recipes"].state == "failed"
    assert "bad.toml: decription: unknown key (did you mean 'description'?)" in found["profiles"].seen
    assert found["targets"].seen == "unknown profile 'nowhere'"
    assert "odd.toml: algorithm: must be " in found["recipes"].seen
    assert exit_code(None, found.values()) == 3


def test_a_full_cache_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    for free, state in ((500_000_000, "failed"), (5_000_000_000, "warn"), (50_000_000_000, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, free=free: usage._replace(free=free))
        (check,) = [check for check in examine_host() if check.name == "disk"]
        assert check.state == state
        assert check.hint == (None if state == "ok" else "free some space, or set EDGEPHI_CACHE_DIR to another disk")


def test_without_an_ssh_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = [check for check in examine_host() if check.name == "ssh client"]
    assert check.state == "warn"
    assert check.hint == "install OpenSSH's client (sudo apt-get install openssh-client)"


def test_the_extras_pins_are_those_of_the_project() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    wanted = extra_pins(metadata.requires("edgephi") or [])
    assert sorted(f"{name}{pin}" for name, pin in wanted.items()) == sorted(
        project["optional-dependencies"]["optimize"]
    )


def test_what_is_installed_of_the_extra() -> None:
    wanted = {"torch": "==2.13.0", "psutil": ">=6.0"}
    assert judge_extra(wanted, {"torch": "2.13.0+cpu", "psutil": "7.2"}).state == "ok"
    none = judge_extra(wanted, {"torch": None, "psutil": None})
    assert (none.state, none.hint) == ("warn", "pip install 'edgephi[optimize]' -c constraints.txt")
    some = judge_extra(wanted, {"torch": "2.12.0", "psutil": None})
    assert (some.state, some.seen) == ("failed", "torch 2.12.0 instead of 2.13.0, psutil is missing")
