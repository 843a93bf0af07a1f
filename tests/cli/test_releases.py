"""verify and prune, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, seed_cache
from tests.support.commands import edgephi


@pytest.fixture
def two(local: Path, tmp_path: Path) -> Path:
    """Two releases on target `local`, the second one active; returns the install root."""
    for recipe in ("fp32", "int4-rtn-b32"):
        seed_cache(tmp_path / "cache", recipe)
        assert edgephi("deploy", f"phi3-nano-{recipe}", "local").returncode == 0
    return local


def damage(path: Path) -> None:
    """Replace a file by a damaged copy: the file itself is a link to the session's build."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_verify_prints_a_row_for_each_release(two: Path) -> None:
    done = edgephi("verify", "local")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("whole") == 2 and done.stdout.count("active") == 1
    assert "local: hash every release" in done.stderr


def test_damage_is_exit_code_six_and_repair_goes_back_to_the_release_before(two: Path) -> None:
    fp32, int4 = build("fp32").id, build("int4-rtn-b32").id
    damage(two / "releases" / int4 / "model.onnx.data")
    done = edgephi("verify", "local", "--json")
    assert done.returncode == 6
    (found,) = [entry for entry in json.loads(done.stdout)["releases"] if entry["damaged"]]
    assert found == {"release": int4, "damaged": ["model.onnx.data"]}
    assert f"error: local: damaged releases: {int4[:12]}: model.onnx.data" in done.stderr
    done = edgephi("verify", "local", "--repair", "--json")
    assert done.returncode == 6, "it was damaged, whatever became of it"
    assert (json.loads(done.stdout)["active"], json.loads(done.stdout)["repaired"]) == (fp32, True)
    assert edgephi("verify", "local").returncode == 0
    assert edgephi("deploy", "phi3-nano-int4-rtn-b32", "local").returncode == 0


def test_prune_says_what_would_go_and_then_removes_it(two: Path) -> None:
    fp32 = build("fp32").id
    planned = edgephi("prune", "local", "--keep", "0", "--dry-run")
    assert planned.stdout.startswith(f"local: would go: {fp32[:12]}; ")
    assert (two / "releases" / fp32).is_dir()
    done = json.loads(edgephi("prune", "local", "--keep", "0", "--json").stdout)
    assert done["removed"] == [fp32] and done["freed_bytes"] > 10**7
    assert not (two / "releases" / fp32).exists()
    assert edgephi("prune", "local").stdout == "local: removed: no release; 0 B of files; releases left: 1\n"


def test_a_device_with_nothing_on_it(local: Path) -> None:
    assert edgephi("verify", "local").stderr.endswith("local: nothing is installed\n")
    assert edgephi("prune", "local").stdout == "local: removed: no release; 0 B of files; releases left: 0\n"
