"""edgephi cache: tables, JSON, the question at a terminal, and what completion offers."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bundles import make
from tests.support.commands import edgephi
from toolkit.bundle.store import store_dir
from toolkit.cli import cache as cache_commands
from toolkit.config import cache_dir
from toolkit.jobs import cache as cache_service


@pytest.fixture
def stored() -> Path:
    bundle = make(store_dir() / "new")
    return bundle.path.rename(store_dir() / bundle.id)


def test_list_shows_what_it_is_how_large_and_how_old(stored: Path) -> None:
    (cache_dir() / "builds" / ".left-0123abcd.part" / "new").mkdir(parents=True)
    done = edgephi("cache", "list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[3:] if line.strip()] == ["half-made", "bundle"]
    assert f"nano-int4 ({stored.name[:12]})" in done.stdout
    assert " s ago" in done.stdout
    assert "edgephi cache prune removes what isn't used" in done.stderr
    (left, bundle) = json.loads(edgephi("cache", "list", "--json").stdout)
    assert (left["kind"], bundle["path"], bundle["held"]) == ("half-made", str(stored), False)


def test_prune_says_what_went_and_what_it_freed(stored: Path) -> None:
    would = edgephi("cache", "prune", "--keep", "0", "--dry-run")
    assert (would.returncode, would.stdout.splitlines()[-1][:12]) == (0, "would go: 1;")
    assert stored.is_dir()
    found = json.loads(edgephi("cache", "prune", "--keep", "0", "--json").stdout)
    assert found["freed_bytes"] > 5000 and found["held"] == [] and not found["dry_run"]
    assert [Path(entry["path"]) for entry in found["removed"]] == [stored]
    assert not stored.exists()
    assert edgephi("cache", "prune", "--keep", "0").stdout == "removed: 0; 0 B of the disk\n"


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", True), (b"\n", True), (b"y\n", False)])
def test_at_a_terminal_it_asks_first(stored: Path, answer: bytes, left: bool) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "toolkit", "cache", "prune", "--keep", "0"]
    process = subprocess.Popen(command, stdin=theirs, stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    said = b""
    while b"remove these 1? [y/N]: " not in said:
        said += os.read(ours, 4096)
    assert b"bundle nano-int4" in said
    os.write(ours, answer)
    assert process.wait(20) == (130 if left else 0)
    os.close(ours)
    assert stored.exists() == left


def test_a_time_of_nothing_is_refused() -> None:
    done = edgephi("cache", "prune", "--older-than", "3 moons")
    assert done.returncode == 2
    assert "'3 moons' has an unknown unit 'moons'; write it like '90s', '30m', '2h' or '7d'" in done.stderr


def test_completion_offers_the_kinds() -> None:
    assert cache_commands.KINDS == cache_service.KINDS
    words = {"_EDGEPHI_COMPLETE": "bash_complete", "COMP_WORDS": "edgephi cache prune --kind b", "COMP_CWORD": "4"}
    done = subprocess.run(
        [sys.executable, "-m", "toolkit"], env=os.environ | words, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["plain,bundle", "plain,build", "plain,blocks"]
