from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.builds import seed_cache
from tests.support.commands import edgephi
from toolkit.bundle import find_bundle
from toolkit.cli import main

SMALL = ("--tokens", "256", "--window", "128", "--prompts", "2")


@pytest.fixture
def built(local: Path, tmp_path: Path) -> Path:
    for recipe in ("fp32", "int4-rtn-b32"):
        seed_cache(tmp_path / "cache", recipe)
    return local


def test_eval_prints_a_row_for_each_bundle_and_records_what_it_found(built: Path) -> None:
    before = find_bundle("phi3-nano-int4-rtn-b32").id
    done = edgephi("eval", "phi3-nano-fp32", "phi3-nano-int4-rtn-b32", "--tokens", "2048", "--prompts", "2")
    assert done.returncode == 0, done.stderr
    assert "phi3-nano-int4-rtn-b32" in done.stdout
    assert "+0.00%" in done.stdout and "100.0%" in done.stdout
    assert "token match: 2 prompts continued greedily for 64 tokens" in done.stderr
    after = find_bundle("phi3-nano-int4-rtn-b32")
    assert f"{before[:12]} → {after.id[:12]}" in done.stderr
    (found,) = json.loads(edgephi("eval", after.id[:12], "--no-record", "--json", *SMALL[:2], "--window", "256").stdout)
    assert found["ppl_increase"] != 0 and found["match_comparable"] is True
    assert found["kld_mean_error"] is None
    assert found["bundle_id"] == after.id == find_bundle("phi3-nano-int4-rtn-b32").id


def test_eval_of_a_target_is_of_its_active_release(built: Path) -> None:
    nothing = edgephi("eval", "local", *SMALL)
    assert nothing.returncode == 3
    assert "error: local: nothing is active there" in nothing.stderr
    edgephi("deploy", "phi3-nano-int4-rtn-b32", "local")
    (found,) = json.loads(edgephi("eval", "local", "--json", *SMALL).stdout)
    assert (found["target"], found["bundle_name"]) == ("local", "phi3-nano-int4-rtn-b32")
    assert found["bundle_id"] == find_bundle("phi3-nano-int4-rtn-b32").id


def test_eval_on_a_target_installs_and_activates_nothing(built: Path) -> None:
    done = edgephi("eval", "phi3-nano-int4-rtn-b32", "--on", "local", "--json", *SMALL)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["target"] == "local"
    assert not (built / "current.json").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("phi3-nano-int5",), "'phi3-nano-int5' is neither a target nor a bundle"),
        (("phi3-nano-fp32", "--on", "lokal"), "unknown target 'lokal' (did you mean 'local'?)"),
        (("phi3-nano-fp32", "--reference", "nothing"), "unknown bundle 'nothing'"),
        (("phi3-nano-fp32", "--tokens", "64"), "64 tokens are less than one window of 512"),
        (("phi3-nano-fp32", "--window", "1024"), "windows of 1024 tokens don't fit the planned context of 1024"),
        (("phi3-nano-fp32", "--text", "empty.txt"), "empty.txt: the text is empty"),
    ],
)
def test_eval_of_what_cannot_be(built: Path, isolated: Path, args: tuple[str, ...], words: str) -> None:
    (isolated / "empty.txt").write_text("")
    done = edgephi("eval", *args)
    assert done.returncode == 3, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_tasks_without_the_extra_say_how_to_get_it(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if lm-eval weren't installed
    with pytest.raises(SystemExit) as caught:
        main(["eval", "phi3-nano-fp32", "--tasks", "mmlu"])
    assert caught.value.code == 4
    told = capsys.readouterr().err
    assert "error: lm-eval tasks need the 'lm-eval' extra" in told
    assert "pip install 'edgephi[lm-eval]'" in told


def test_run_and_optimize_evaluate_what_they_built(built: Path) -> None:
    done = edgephi("optimize", "phi3-nano", "-p", "local", "-r", "int4-rtn-b32", "--eval", "-o", "mine", "--json")
    assert done.returncode == 0, done.stderr
    built_bundle = json.loads(done.stdout)
    assert built_bundle["manifest"]["quality"]["held-out"]["ppl"] > 0
    assert built_bundle["id"] == find_bundle("phi3-nano-int4-rtn-b32").id == find_bundle("./mine").id
    run = edgephi("run", "phi3-nano", "local", "-w", "quick", "--eval", "--json")
    assert run.returncode == 0, run.stderr
    assert "= evaluate phi3-nano-int4-rtn-b32 (already done)" in run.stderr
    (report,) = json.loads(run.stdout)["reports"]
    assert report["bundle_id"] == built_bundle["id"]
    assert report["quality"] == built_bundle["manifest"]["quality"]
    table = edgephi("run", "phi3-nano", "local", "-w", "quick", "--eval", "--output", "table.md")
    assert table.returncode == 0, table.stderr
    assert "| ppl increase | KLD | token match |" in Path("table.md").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--limit", "3"), "--limit has no effect without --tasks\n"),
        (
            ("--on", "local", "--record"),
            "--record has no effect on a target: only figures taken on this machine are kept\n",
        ),
        (
            ("--tasks", "absent.yaml", "--tokens", "64", "--no-record"),
            "--tokens and --no-record have no effect with --tasks: the tasks bring their own texts, and their scores "
            "aren't kept\n",
        ),
    ],
)
def test_options_without_effect_are_said(built: Path, options: tuple[str, ...], words: str) -> None:
    done = edgephi("eval", "phi3-nano-int4-rtn-b32", *options, *(() if "--tasks" in options else SMALL))
    assert done.stderr.startswith(f"warning: {words}")
    assert done.stderr.count("no effect") == 1
    assert "no effect" not in edgephi("eval", "no-such", *SMALL).stderr


def test_markdown_beside_json_is_said(built: Path) -> None:
    edgephi("deploy", "phi3-nano-fp32", "local")
    done = edgephi("bench", "local", "-w", "quick", "--markdown", "--json")
    assert json.loads(done.stdout)["recipe"] == "fp32"
    assert "warning: --markdown has no effect where JSON is written\n" in done.stderr
