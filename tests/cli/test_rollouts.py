"""deploy to several targets, rollouts list and show: as typed, each in a process of its own."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, interruptible, seed_cache
from tests.support.commands import edgephi
from tests.support.devices import pointer
from tests.support.fleets import device_root, here, over, processes_naming, switched_off, write_targets
from toolkit.emulate import EmbeddedServer

NAME = "phi3-nano-int4-rtn-b32"


@pytest.fixture
def lab(tmp_path: Path, runtimes: Path) -> Path:
    """Target d1, target d2 without a tag, and target d3, which is off; returns the folder of their files."""
    seed_cache(tmp_path / "cache", "int4-rtn-b32")
    folder = tmp_path / "config" / "targets"
    d1, d2 = (here(name, device_root(tmp_path / name, runtimes)) for name in ("d1", "d2"))
    write_targets(folder, [d1, d2.model_copy(update={"tags": ()}), switched_off("d3")])
    return folder


def test_a_rollout_ends_in_a_table_and_goes_on(lab: Path, tmp_path: Path, runtimes: Path) -> None:
    release = build("int4-rtn-b32").id
    done = edgephi("deploy", NAME, "@lab")
    assert done.returncode == 7, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert lines[0] == [NAME, f"({release[:12]})"]
    assert lines[1][:5] == ["target", "wave", "state", "s", "sent"]
    rows = {line[0]: line for line in lines[3:]}
    assert rows["d1"][1:4] == ["1", "canary", "done"] and rows["d1"][-1] == release[:12]
    assert rows["d3"][1:3] == ["2", "failed"] and rows["d3"][-2:] == ["connection", "refused"]
    assert "> d1: probe\n" in done.stderr and "> wave 2 of 2, 1 device: d3\n" in done.stderr
    (record,) = json.loads(edgephi("rollouts", "list", "--json").stdout)
    short = record["id"][:8]
    assert f"error: rollout {short}: 1 done, 1 failed\n" in done.stderr
    assert (
        f"hint: the same command goes on with those that aren't done; edgephi rollouts show {short} has" in done.stderr
    )

    listed = edgephi("rollouts").stdout
    assert short in listed and NAME in listed
    shown = edgephi("rollouts", "show", short)
    assert shown.stdout.splitlines()[0] == done.stdout.splitlines()[0]
    assert "does sshd run there, on port" in shown.stderr
    assert json.loads(edgephi("rollouts", "show", short, "--json").stdout) == record

    write_targets(lab, [here("d3", device_root(tmp_path / "d3", runtimes))])
    again = edgephi("deploy", NAME, "@lab", "--json")
    assert again.returncode == 0, again.stderr
    answer = json.loads(again.stdout)
    assert answer["id"] == record["id"]
    assert {device["state"] for device in answer["devices"]} == {"done"}
    assert f"= d1: {NAME} is active (already done)" in again.stderr
    assert pointer(tmp_path / "d3")["release"] == release


def test_the_gate_holds_each_device_to_its_own_profile(lab: Path, tmp_path: Path) -> None:
    profiles = tmp_path / "config" / "profiles"
    profiles.mkdir()
    for name, bound in (("easy", "0.001"), ("hard", "99999")):
        limits = f"[limits]\nmin_decode_tps = {bound}\n"
        (profiles / f"{name}.toml").write_text(f'schema_version = 1\nextends = "local"\ndescription = "x"\n\n{limits}')
    for name, profile in (("d1", "easy"), ("d2", "hard")):
        path = lab / f"{name}.toml"
        path.write_text(path.read_text().replace('"local"\ninstall', f'"{profile}"\ninstall'))
    done = edgephi("deploy", NAME, "d1", "d2", "--gate", "--json")
    assert done.returncode == 10, done.stderr
    easy, hard = json.loads(done.stdout)["devices"]
    assert (easy["state"], easy["active"]) == ("done", build("int4-rtn-b32").id)
    assert (hard["state"], hard["exit_code"], hard["restored"], hard["active"]) == ("failed", 10, "unchanged", None)
    assert "doesn't hold the limits of its profile: min_decode_tps is 99999, measured" in hard["error"]
    assert not (tmp_path / "d2" / "current.json").exists()


def test_a_plan_contacts_nobody(lab: Path, tmp_path: Path) -> None:
    planned = edgephi("deploy", NAME, "d3", "@all", "--dry-run", "--canary", "50%", "--parallel", "1")
    assert planned.returncode == 0, planned.stderr
    rows = [line.split() for line in planned.stdout.splitlines() if line.strip()][3:]
    assert rows == [
        ["1", "canary", "d3", "local", "pending"],
        ["2", "canary", "d1", "local", "pending"],
        ["3", "d2", "local", "pending"],
    ]
    answer = json.loads(edgephi("deploy", NAME, "@lab", "--dry-run", "--json").stdout)
    assert answer["dry_run"] and [device["target"] for device in answer["devices"]] == ["d1", "d3"]
    assert not (tmp_path / "d1" / "agent").exists() and not (tmp_path / "data" / "rollouts").exists()


def test_one_target_alone_is_no_rollout(lab: Path, tmp_path: Path) -> None:
    done = edgephi("deploy", NAME, "d1", "--json")
    release = build("int4-rtn-b32").id
    answer = json.loads(done.stdout)
    assert list(answer) == ["target", "release", "runtime", "active"]
    assert (answer["target"], answer["release"], answer["active"]) == ("d1", release, True)
    assert not (tmp_path / "data" / "rollouts").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("@lob",), 3, "unknown tag '@lob' (did you mean '@lab'?)\n hint: known tags: @all, @lab\n"),
        (("d1", "d4"), 3, "unknown target 'd4'"),
        (("d1", "--dry-run"), 2, "--dry-run is for a rollout: several targets, or a @tag"),
        (("d1", "--max-failures", "0"), 2, "--max-failures is for a rollout: several targets, or a @tag"),
        (("@lab", "--canary", "lots"), 2, "'lots' is neither a number of devices nor a percentage like 10%"),
        (("@lab", "--parallel", "0"), 2, "0 is not in the range x>=1"),
        ((), 2, "Missing argument 'TARGET...'"),
    ],
)
def test_asked_wrongly(args: tuple[str, ...], code: int, words: str, lab: Path) -> None:
    done = edgephi("deploy", NAME, *args)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rollout_that_is_not_there() -> None:
    done = edgephi("rollouts", "show", "0123")
    assert done.returncode == 3
    assert "error: no rollout called '0123'\n hint: edgephi rollouts list shows them" in done.stderr
    assert json.loads(edgephi("rollouts", "list", "--json").stdout) == []


def test_run_takes_tags_too(lab: Path) -> None:
    done = edgephi("run", "phi3-nano", "@lob")
    assert done.returncode == 3
    assert "unknown tag '@lob'" in done.stderr


def test_ctrl_c_ends_the_agents_and_the_same_command_goes_on(lab: Path, tmp_path: Path, runtimes: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        root = device_root(tmp_path / "d4", runtimes)
        write_targets(lab, [over(server, "d4", root)])
        with interruptible("deploy", NAME, "d1", "d4") as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "d4: load it" in line:
                    break
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
            assert time.monotonic() - began < 6
            assert process.stderr.read().endswith("error: interrupted\n")
        deadline = time.monotonic() + 10
        while processes_naming(tmp_path):
            assert time.monotonic() < deadline, "an agent is still running"
            time.sleep(0.1)
        (record,) = json.loads(edgephi("rollouts", "list", "--json").stdout)
        assert [(each["target"], each["state"]) for each in record["devices"]] == [("d1", "done"), ("d4", "pending")]
        again = edgephi("deploy", NAME, "d1", "d4", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["id"] == record["id"]
    assert pointer(root)["release"] == build("int4-rtn-b32").id
