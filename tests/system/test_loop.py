"""deploy, releases, activate, rollback, bench, chat, run, demo: as typed, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tomli_w

from tests.support.builds import bundle as build, interruptible, seed_cache
from tests.support.commands import edgephi
from toolkit.catalog.workload import load_workload


@pytest.fixture
def deployed(local: Path, tmp_path: Path) -> Path:
    seed_cache(tmp_path / "cache", "fp32")
    done = edgephi("deploy", "phi3-nano-fp32", "local")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"local: phi3-nano-fp32 ({build('fp32').id[:12]}) is active\n"
    return local


def test_deploy_activate_and_roll_back(deployed: Path, tmp_path: Path) -> None:
    seed_cache(tmp_path / "cache", "int4-rtn-b32")
    fp32, int4 = build("fp32").id, build("int4-rtn-b32").id
    answer = json.loads(edgephi("deploy", int4[:12], "local", "--json").stdout)
    assert answer["release"] == int4 and answer["active"]
    listed = json.loads(edgephi("releases", "local", "--json").stdout)
    assert {entry["release"]: entry["active"] for entry in listed["releases"]} == {int4: True, fp32: False}
    table = edgephi("releases", "local").stdout
    assert "phi3-nano-int4-rtn-b32" in table and table.count("active") == 1
    assert edgephi("rollback", "local").stdout == f"local: {fp32[:12]} is active\n"
    assert edgephi("activate", "local", "phi3-nano-int4-rtn-b32").stdout == f"local: {int4[:12]} is active\n"


def test_rollback_without_a_way_back(deployed: Path) -> None:
    done = edgephi("rollback", "local")
    assert done.returncode == 7
    assert "error: local: there is no release to go back to" in done.stderr


def test_deploying_what_does_not_exist(local: Path) -> None:
    done = edgephi("deploy", "nothing", "local")
    assert done.returncode == 3
    assert "nothing" in done.stderr and "edgephi bundle list" in done.stderr


def test_bench_prints_json_that_jq_can_walk(deployed: Path) -> None:
    done = edgephi("bench", "local", "-w", "quick", "--json")
    report = json.loads(done.stdout)
    assert len(report["runs"]) == 1
    assert report["metrics"]["decode_tps"]["median"] > 0


def test_bench_of_a_bundle_without_a_target_and_output_files(deployed: Path, isolated: Path) -> None:
    done = edgephi("bench", "phi3-nano-fp32", "-w", "quick", "-o", "table.md")
    assert done.returncode == 0, done.stderr
    assert (isolated / "table.md").read_text().startswith("| target | model | recipe |")
    assert edgephi("bench", str(build("fp32").path), "-w", "quick", "-o", "report.json").returncode == 0
    assert json.loads((isolated / "report.json").read_text())["recipe"] == "fp32"


def test_bench_of_an_unknown_workload(deployed: Path) -> None:
    done = edgephi("bench", "local", "-w", "quik")
    assert done.returncode == 3
    assert "error: unknown workload 'quik' (did you mean 'quick'?)" in done.stderr


def test_chat_answers_one_prompt_and_what_is_piped(deployed: Path) -> None:
    prompt = "And it came to pass in those days."
    one = edgephi("chat", "local", "--prompt", prompt, "--max-tokens", "8")
    assert one.returncode == 0, one.stderr
    assert len(one.stdout.split()) >= 3
    assert edgephi("chat", "local", "--max-tokens", "8", stdin=prompt + "\n").stdout == one.stdout


def test_chat_with_nothing_to_say(deployed: Path) -> None:
    done = edgephi("chat", "local", stdin="")
    assert done.returncode == 2
    assert "the prompt is empty" in done.stderr


def test_ctrl_c_in_a_benchmark_ends_the_agent_and_keeps_no_report(deployed: Path, tmp_path: Path) -> None:
    workloads = tmp_path / "config" / "workloads"
    workloads.mkdir()
    (workloads / "endless.toml").write_text(
        'description = "x"\nprompt_tokens = 8\ngenerate_tokens = 900\nrepetitions = 1000\n'
    )
    with interruptible("bench", "local", "-w", "endless") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "run 1 of" in line:
                break
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    assert not (tmp_path / "data" / "reports").exists()
    deadline = time.monotonic() + 10
    while subprocess.run(["pgrep", "-f", f"{deployed}/agent"], capture_output=True).returncode == 0:
        assert time.monotonic() < deadline, "the agent is still running"
        time.sleep(0.1)


def test_run_ends_in_a_table(local: Path, tmp_path: Path) -> None:
    seed_cache(tmp_path / "cache", "int4-rtn-b32")
    done = edgephi("run", "phi3-nano", "local", "-w", "quick")
    assert done.returncode == 0, done.stderr
    assert "phi3-nano on local" in done.stdout
    assert "int4-rtn-b32" in done.stdout


@pytest.mark.parametrize("preset", ["phi-3-tiny-gqa", "phi-3-tiny-longrope"])
def test_run_on_a_local_folder_of_another_shape(preset: str, local: Path, isolated: Path) -> None:
    assert edgephi("models", "synth", preset, "-o", "model").returncode == 0
    done = edgephi("run", "./model", "local", "-w", "quick", "--json")
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)["reports"]
    assert report["metrics"]["decode_tps"]["median"] > 0
    assert report["recipe"] == "int4-rtn-b32"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("run", "phi3-nano", "lokal"), 3, "unknown target 'lokal' (did you mean 'local'?)"),
        (
            ("run", "phi3-nano", "local", "-r", "int4-rtn-b33"),
            3,
            "unknown recipe 'int4-rtn-b33' (did you mean",
        ),
        (("run", "no-such-model", "local"), 3, "no-such-model"),
        (("run", "phi3-nano"), 2, "Missing argument 'TARGET...'"),
    ],
)
def test_run_with_wrong_names(local: Path, args: tuple[str, ...], code: int, words: str) -> None:
    done = edgephi(*args)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("embedded", [True, False], ids=["embedded", "sshd"])
def test_the_demo_ends_in_its_table(embedded: bool, tmp_path: Path, local: Path, runtimes: Path) -> None:
    """The demo runs a shortened workload that takes seconds; the slow test below runs the shipped one."""
    from toolkit.jobs.demo import RECIPES

    short = {"warmup": 1, "repetitions": 2, "runs": 1, "quality_tokens": 2048}
    workload = load_workload("demo").model_copy(update=short)
    (tmp_path / "config" / "workloads").mkdir()
    (tmp_path / "config" / "workloads" / "demo.toml").write_text(tomli_w.dumps(workload.model_dump(exclude={"name"})))
    for recipe in RECIPES:
        seed_cache(tmp_path / "cache", recipe)
    device = tmp_path / "cache" / "demo" / "device"
    device.mkdir(parents=True)
    (device / "runtimes").symlink_to(runtimes)
    started = time.monotonic()
    done = edgephi("demo", "--json", *(["--embedded"] if embedded else []))
    assert done.returncode == 0, done.stderr
    assert ("embedded" if embedded else "OpenSSH") in done.stderr.splitlines()[0]
    reports = json.loads(done.stdout)["reports"]
    assert [report["recipe"] for report in reports] == list(RECIPES)
    ppl = {report["recipe"]: report["metrics"]["ppl"]["median"] for report in reports}
    assert ppl["int4-rtn-b32"] > ppl["fp32"]
    first = time.monotonic() - started
    started = time.monotonic()
    again = edgephi("demo", "--json", *(["--embedded"] if embedded else []))
    assert json.loads(again.stdout)["reports"] == reports
    assert time.monotonic() - started < first


@pytest.mark.slow
def test_the_demo_from_nothing_and_again() -> None:
    """The first `edgephi demo` begins without cache, runtime or build; the second one finds it all done."""
    first = edgephi("demo", "--json")
    assert first.returncode == 0, first.stderr
    assert len(json.loads(first.stdout)["reports"]) == 4
    again = edgephi("demo", "--json")
    assert again.stdout == first.stdout
    assert not [line for line in again.stderr.splitlines() if "quantize" in line or "install runtime" in line]


def test_what_the_user_types_never_reaches_a_shell(local: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    for name in (f"$(touch {trap})", f"; touch {trap}", f"`touch {trap}`"):
        assert edgephi("activate", "local", name).returncode == 3
    assert not trap.exists()
    assert os.environ["HOME"] != str(Path("~root").expanduser())
