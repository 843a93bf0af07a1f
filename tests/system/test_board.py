"""The whole loop, as a user types it, on an emulated Raspberry Pi 5 with Debian and real aarch64 wheels.

`make test-board` runs it. Downloads and builds are kept in `.board` of the checkout. With EDGEPHI_RECORD_BOARD
its table goes into the document of that name.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import REPO
from toolkit.config import cache_dir
from toolkit.emulate.binfmt import register
from toolkit.emulate.boards import check_machine, load_state
from toolkit.errors import ConfigError
from toolkit.events import drain

pytestmark = [pytest.mark.board, pytest.mark.timeout(1800)]

KEPT = REPO / ".board"
RECORD = os.environ.get("EDGEPHI_RECORD_BOARD")
BOARD = "board"
FIRST, SECOND = "fp32", "int4-rtn-b32"
# Bounds on the difference in a bundle's quality between this CPU and the emulated one: their kernels round differently.
PPL_BOUND, KLD_BOUND = 0.02, 0.01


def refuse_or_skip() -> None:
    """Skip the test when this machine can't run aarch64 programs; in CI a missing package fails it."""
    try:
        check_machine()
        drain(register())
    except ConfigError as exc:
        impossible = "root" in exc.message or "kernel" in exc.message or "x86_64" in exc.message
        if impossible or "CI" not in os.environ:
            pytest.skip(f"no emulated board here: {exc.message}")
        raise


@dataclass
class Story:
    """The typed commands, their results, and the time that each took."""

    rows: list[tuple[str, str, str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def edgephi(self, *args: str) -> Any:
        """Run a command; returns its JSON, or its text without `--json`."""
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "toolkit", *args], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        self.seconds = time.monotonic() - start
        assert done.returncode == 0, f"{' '.join(args)}: {done.stderr}"
        return json.loads(done.stdout) if "--json" in args else done.stdout

    def tell(self, step: str, command: str, seen: str) -> None:
        """Add a row about the last command."""
        self.rows.append((step, command, seen, self.seconds))

    def markdown(self) -> str:
        lines = ["| step | command | what was seen | s |", "|---|---|---|---|"]
        lines += [f"| {step} | `{command}` | {seen} | {seconds:.0f} |" for step, command, seen, seconds in self.rows]
        total = sum(seconds for *_, seconds in self.rows)
        return "\n".join([*lines, f"| | | all of it | {total:.0f} |"])


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    """Run with a user's own folders, of which cache and home are kept from run to run; no board is left over."""
    refuse_or_skip()
    for folder in ("cache", "home"):
        (KEPT / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("EDGEPHI_CACHE_DIR", str(KEPT / "cache"))
    monkeypatch.setenv("HOME", str(KEPT / "home"))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    told = Story()
    remove_board()
    try:
        yield told
    finally:
        remove_board()


def remove_board() -> None:
    """Remove the board, also one that a killed run has left. The result isn't checked."""
    subprocess.run([sys.executable, "-m", "toolkit", "emulate", "remove", BOARD], capture_output=True, check=False)


def test_the_whole_loop(story: Story) -> None:
    address = start_and_recognize(story)
    first = deploy_the_first(story)
    second = run_the_second(story, address)
    compare_quality(story, second)
    talk(story)
    go_back(story, first)
    survive_a_restart(story, first)
    if RECORD:
        record(story)


def start_and_recognize(story: Story) -> str:
    """Start the board, and add it as a user adds any board. Returns the name of the new target."""
    cold = "with the board's Debian made first" if not (cache_dir() / "emulator" / "rootfs").exists() else ""
    started = story.edgephi("emulate", "start", "raspberry-pi-5", "--name", BOARD, "--json")
    assert started["running"] and started["profile"] == "raspberry-pi-5-8gb"
    story.tell("start", "edgephi emulate start raspberry-pi-5", f"sshd on 127.0.0.1 {cold}".strip())
    files = cache_dir() / "emulator" / "boards" / BOARD
    given = ["--identity-file", str(files / "keys" / "client_key"), "--known-hosts", str(files / "known_hosts")]
    host = ["pi@127.0.0.1", "--port", str(started["port"])]
    added = story.edgephi("targets", "add", "pi5", *host, *given, "--json")
    assert added["profile"] == "raspberry-pi-5-8gb"
    story.tell("probe, profile", "edgephi targets add pi5 pi@…", f"{added['profile']}: {added['profile_reasons'][0]}")
    return str(added["name"])


def deploy_the_first(story: Story) -> str:
    """Build, provision from wheels that are pushed, push, verify, activate. Returns the release's id."""
    built = story.edgephi("optimize", "phi3-nano", "--profile", "raspberry-pi-5-8gb", "-r", FIRST, "--json")
    story.tell("optimize", f"edgephi optimize phi3-nano -r {FIRST}", "built on this machine")
    released = story.edgephi("deploy", built["id"], BOARD, "--offline", "--json")
    assert released["active"] and released["release"] == built["id"]
    step = "provision offline, push, verify, activate"
    story.tell(step, f"edgephi deploy phi3-nano-{FIRST} pi5 --offline", "it loads, generates, and is active")
    return str(built["id"])


def run_the_second(story: Story, address: str) -> dict[str, Any]:
    """The main command, over the target that was added by hand. Returns its report."""
    answer = story.edgephi("run", "phi3-nano", address, "-r", SECOND, "-w", "quick", "--json")
    (report,) = answer["reports"]
    found, board = report["metrics"], report["environment"]
    assert board["emulated"] and "emulated: correctness only" in report["remarks"]
    assert (board["arch"], board["board"]) == ("aarch64", "Raspberry Pi 5 Model B Rev 1.0")
    assert found["decode_tps"]["median"] > 0
    (runtime,) = [text for text in report["runtime"] if text.startswith("onnxruntime-genai")]
    seen = f"active, generates in {runtime}; its row is marked “{report['remarks'][0]}”"
    story.tell("bench, second bundle", f"edgephi run phi3-nano pi5 -r {SECOND}", seen)
    verified = story.edgephi("verify", BOARD, "--json")
    assert len(verified["releases"]) == 2 and not any(release["damaged"] for release in verified["releases"])
    story.tell("verify", "edgephi verify pi5", "2 releases, whole")
    return dict(report)


def compare_quality(story: Story, report: dict[str, Any]) -> None:
    """Compare distributions: tokens differ between CPUs where two are about as likely."""
    sample = ["--tokens", "512", "--window", "256", "--prompts", "0", "--json"]
    (here,) = story.edgephi("eval", report["bundle_id"], "--no-record", *sample)
    (there,) = story.edgephi("eval", BOARD, *sample)
    assert there["arch"] == "aarch64" and here["arch"] == platform.machine()
    assert abs(there["ppl"] / here["ppl"] - 1) < PPL_BOUND
    assert abs(there["kld_mean"] - here["kld_mean"]) < KLD_BOUND
    seen = (
        f"perplexity {there['ppl']:.2f}, here {here['ppl']:.2f}; "
        f"KL divergence from fp32 {there['kld_mean']:.4f}, here {here['kld_mean']:.4f}"
    )
    story.tell("compare", "edgephi eval pi5", seen)


def talk(story: Story) -> None:
    said = story.edgephi("chat", BOARD, "--prompt", "Who was Noah?", "--max-tokens", "8").strip()
    assert said
    story.tell("chat", "edgephi chat pi5 --max-tokens 8", f"“{said.splitlines()[0]}”")


def go_back(story: Story, first: str) -> None:
    answer = story.edgephi("rollback", BOARD, "--json")
    assert answer["release"] == first
    story.tell("rollback", "edgephi rollback pi5", f"phi3-nano-{FIRST} is active")


def survive_a_restart(story: Story, first: str) -> None:
    """Stop the board, which ends all its processes; after the next start its releases are there."""
    state = load_state(BOARD)
    assert state.running
    assert story.edgephi("emulate", "stop", BOARD, "--json")["stopped"]
    assert not load_state(BOARD).running
    again = story.edgephi("emulate", "start", "raspberry-pi-5", "--name", BOARD, "--json")
    assert again["port"] == state.port and load_state(BOARD).pid != state.pid
    active = [entry["release"] for entry in story.edgephi("releases", BOARD, "--json")["releases"] if entry["active"]]
    assert active == [first]
    story.tell("stop, start again", "edgephi emulate stop, start", f"phi3-nano-{FIRST} is active still")


def record(story: Story) -> None:
    assert RECORD
    path = REPO / RECORD
    head, begin, rest = path.read_text("utf-8").partition("<!-- begin: board -->\n")
    _, end, tail = rest.partition("<!-- end: board -->")
    assert begin and end
    path.write_text(f"{head}{begin}{story.markdown()}\n{end}{tail}", "utf-8")


def test_a_second_start_finds_the_board_running(story: Story) -> None:
    once, twice = (story.edgephi("emulate", "start", "raspberry-pi-4", "--name", BOARD, "--json") for _ in range(2))
    assert once == twice and once["profile"] == "raspberry-pi-4-8gb"
    probe = story.edgephi("targets", "probe", BOARD, "--json")
    assert (probe["soc"], probe["isa"]) == ("bcm2711", ["asimd"])


def test_a_killed_board_is_noticed(story: Story) -> None:
    story.edgephi("emulate", "start", "raspberry-pi-5", "--name", BOARD)
    pid = load_state(BOARD).pid
    assert pid is not None
    os.kill(pid, 9)
    deadline = time.monotonic() + 60
    while load_state(BOARD).running and time.monotonic() < deadline:
        time.sleep(0.1)
    (listed,) = story.edgephi("emulate", "list", "--json")
    assert not listed["running"]
    assert story.edgephi("emulate", "start", "raspberry-pi-5", "--name", BOARD, "--json")["running"]


def test_removing_a_board_removes_its_files_and_its_target(story: Story) -> None:
    started = story.edgephi("emulate", "start", "raspberry-pi-5", "--name", BOARD, "--json")
    assert Path(started["target"]).is_file()
    story.edgephi("emulate", "remove", BOARD)
    assert not Path(started["target"]).exists()
    assert not (cache_dir() / "emulator" / "boards" / BOARD).exists()
    assert shutil.which("mmdebstrap")
