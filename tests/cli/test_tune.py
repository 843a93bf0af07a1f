"""`edgephi tune`, as typed, in a process of its own."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.support.builds import interruptible, seed_cache
from tests.support.commands import edgephi

WORKLOAD = 'description = "x"\nprompt_tokens = 96\ngenerate_tokens = 12\nwarmup = 0\nrepetitions = 3\nruns = 1\n'


@pytest.fixture
def ready(local: Path, isolated: Path, tmp_path: Path) -> Path:
    """Target `local`, builds of two recipes, and workload `tiny`; returns the working folder."""
    for recipe in ("int4-rtn-b32", "int4-rtn-b128"):
        seed_cache(tmp_path / "cache", recipe)
    (isolated / "workloads").mkdir()
    (isolated / "workloads" / "tiny.toml").write_text(WORKLOAD)
    return isolated


SEARCH = ("tune", "phi3-nano", "local", "-r", "int4-rtn-b128", "-w", "tiny", "--no-quality")


def reports(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "data" / "reports").glob("*.json")}


def test_a_killed_search_goes_on_and_its_recipe_runs(ready: Path, tmp_path: Path) -> None:
    with interruptible(*SEARCH, "--trials", "3") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "trial 2" in line:
                break
        process.send_signal(signal.SIGKILL)
    before = reports(tmp_path)
    assert len(before) == 1
    done = edgephi(*SEARCH, "--trials", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert "trials of this search so far: 1" in done.stderr
    assert "trial 1:" not in done.stderr and "trial 2: int4-rtn-b128" in done.stderr
    found = json.loads(done.stdout)
    assert [trial["state"] for trial in found["trials"]] == ["measured"] * 3
    assert Path(found["trials"][0]["report"]).name in before
    assert found["trials"][0]["metrics"]["decode_tps"]["median"] > 0
    assert found["recipe_file"].startswith("tuned/phi3-nano-local/recipes/int4-rtn-b")
    ran = edgephi("run", "phi3-nano", "local", "-w", "tiny", "-r", found["recipe_file"], "--json")
    assert ran.returncode == 0, ran.stderr
    shown = edgephi("profiles", "show", found["profile_file"])
    assert shown.returncode == 0, shown.stderr
    table = edgephi(*SEARCH, "--trials", "3", "--out", "mine")
    assert "phi3-nano on local" in table.stdout and "int4-rtn-b" in table.stdout
    assert found["recommendation"] in table.stdout
    assert "3 trials, 3 of them measured" in table.stderr
    assert (ready / "mine" / "profiles" / "local-tuned.toml").is_file()


def test_ctrl_c_ends_it_and_leaves_what_was_measured(ready: Path, tmp_path: Path) -> None:
    with interruptible(*SEARCH) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "trial 2" in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    assert len(reports(tmp_path)) >= 1


def test_a_dry_run_says_what_would_be_searched_and_does_nothing(local: Path, tmp_path: Path) -> None:
    done = edgephi("tune", "phi3-nano", "local", "--dry-run", "--objective", "memory", "--max-ppl-increase", "5%")
    assert done.returncode == 0, done.stderr
    assert "int4-rtn-b128" in done.stdout and "to be measured" in done.stdout
    assert "16-bit floats are for GPU providers" in done.stdout
    assert "at most +5.0% perplexity" in done.stderr
    assert not list(tmp_path.glob("data/*")) and not list(local.glob("agent/*"))
    plan = json.loads(edgephi("tune", "phi3-nano", "local", "--dry-run", "--json", "-r", "fp32").stdout)
    assert [candidate["recipe"] for candidate in plan["candidates"]] == ["int4-rtn-b32", "fp32"]
    assert plan["default"]["settings"]["ngram_size"] == 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("phi3-nano", "lokal"), 3, "unknown target 'lokal' (did you mean 'local'?)"),
        (("phi3-nano", "local", "-r", "int4-rtn-b33"), 3, "unknown recipe 'int4-rtn-b33' (did you mean"),
        (("phi3-nano", "local", "--budget", "30"), 2, "'30' has no unit; write it like '30m'"),
        (("phi3-nano", "local", "--max-ppl-increase", "0.03"), 2, "'0.03' has no unit; write it like '3%'"),
        (("phi3-nano", "local", "--objective", "speed"), 2, "'speed' is not one of"),
        (("phi3-nano", "local", "--context", "100"), 3, "workload 'default' needs 320 tokens of context"),
        (("no-such-model", "local"), 3, "no-such-model"),
    ],
)
def test_what_is_wrong_is_said(local: Path, args: tuple[str, ...], code: int, words: str) -> None:
    for extra in ((), ("--dry-run",)):
        done = edgephi("tune", *args, *extra)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
