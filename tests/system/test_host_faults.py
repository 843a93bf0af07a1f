"""This machine fails in the middle of its work: its process is killed, or its disk becomes full. Afterwards the device
answers with the old or the new release, whole, nothing half made counts as made here, and the same command completes.

`make test-faults` runs all of it and writes a table in docs/reliability.md.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builds import follow, seed_cache
from tests.support.commands import edgephi
from tests.support.faults import Table, answering, new, old, recorded, settle
from tests.support.pythons import script
from tests.support.servers import needs_root, needs_sshd, small_disk
from tests.support.targets import write_target
from toolkit.agent.requests import Request
from toolkit.bundle.store import find_problems, list_bundles
from toolkit.catalog import load_target
from toolkit.deploy import deploy
from toolkit.device import connect
from toolkit.emulate import PrivateSshd
from toolkit.errors import NoProgress

pytestmark = [pytest.mark.faults, needs_sshd]

CHANCE = random.Random(11)
RECIPE = "int4-rtn-b32"
NAME = f"phi3-nano-{RECIPE}"
DEPLOY = ("deploy", NAME, "pi5")
OPTIMIZE = ("optimize", "phi3-nano", "-p", "local", "-r", RECIPE)
PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    with recorded("host-faults") as table:
        yield table


@pytest.fixture(scope="module")
def durations() -> dict[str, float]:
    """The seconds that each command takes undisturbed, filled by the first test that needs them."""
    return {}


@pytest.fixture
def pi5(sshd: PrivateSshd, tmp_path: Path, root: Path) -> Path:
    """A device on which the old release is active, the new one being in the store here. Returns its install root."""
    seed_cache(tmp_path / "cache", RECIPE)
    write_target(tmp_path, sshd, install_root=str(root))
    with connect(load_target("pi5")) as device:
        follow(deploy(old(), device))
    return root


def timed(*command: str) -> float:
    began = time.monotonic()
    done = edgephi(*command)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def kill(command: tuple[str, ...], after_s: float) -> None:
    """Run a command, and kill it with all its children after that time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", *command], stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(after_s)
    ended = process.poll() is not None
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if ended:
        pytest.skip("it ended before that moment")


def whole_here() -> bool:
    """Tell if every bundle of the store is whole, and at least one is there."""
    bundles = list_bundles()
    assert not any(follow(find_problems(bundle)) for bundle in bundles)
    return bool(bundles)


@pytest.mark.parametrize("share", [CHANCE.uniform(0.02, 0.85) for _ in range(50)])
def test_a_deployment_is_killed(
    table: Table, durations: dict[str, float], sshd: PrivateSshd, pi5: Path, tmp_path: Path, share: float
) -> None:
    if "deploy" not in durations:
        write_target(tmp_path, sshd, install_root=str(tmp_path / "other"))
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "runtimes").symlink_to((pi5 / "runtimes").readlink())
        durations["deploy"] = timed(*DEPLOY)
        write_target(tmp_path, sshd, install_root=str(pi5))
    kill(DEPLOY, share * durations["deploy"])
    row = table["this machine's `deploy` killed at a random moment"]
    with connect(load_target("pi5")) as device:
        row.answers.append(answering(device))
    assert whole_here()
    timed(*DEPLOY)
    with connect(load_target("pi5")) as device:
        assert answering(device) == "new"
    row.completed += 1


@pytest.mark.parametrize("share", [CHANCE.uniform(0.02, 0.85) for _ in range(8)])
def test_a_build_is_killed(table: Table, durations: dict[str, float], tmp_path: Path, share: float) -> None:
    if "optimize" not in durations:
        durations["optimize"] = timed(*OPTIMIZE)
        shutil.rmtree(tmp_path / "cache")
    kill(OPTIMIZE, share * durations["optimize"])
    row = table["this machine's `optimize` killed at a random moment"]
    row.answers.append("none")
    whole_here()
    timed(*OPTIMIZE)
    assert whole_here()
    assert [path.name for path in (tmp_path / "cache" / "builds").glob(".*.part")] == [], "half-made builds are swept"
    row.completed += 1


COUNTING = '{"protocol": 1, "event": {"type": "progress", "label": "x", "done": 1, "total": 2, "unit": "steps"}}'
NEVER_ENDS = {
    "says nothing": "exec sleep 300",
    "counts for ever and comes no nearer": f"while :; do echo '{COUNTING}'; sleep 0.1; done",
    "ends no line": "while :; do printf x; sleep 0.1; done",
}


@pytest.mark.parametrize("kind", NEVER_ENDS)
@pytest.mark.parametrize("op", [1, 3, 5])
def test_a_device_never_ends(table: Table, pi5: Path, tmp_path: Path, kind: str, op: int) -> None:
    """From its `op`-th start on the agent is a program that doesn't end."""
    starts = tmp_path / "starts"
    real = f'echo x >> {starts}; [ $(wc -l < {starts}) -lt {op} ] && exec {sys.executable} "$@"'
    target = load_target("pi5")
    stuck = target.model_copy(update={"python": str(script(tmp_path / "stuck", real, NEVER_ENDS[kind]))})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(NoProgress), connect(stuck) as device:
        patch.setattr(Request, "longest_silence_s", 5.0)
        follow(deploy(new(), device))
    settle(table, f"the agent on the device {kind}", target)
    assert pi5.is_dir()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk for all folders of edgephi's own."""
    with small_disk(tmp_path / "host", "64m") as folder:
        yield folder


def full_after(disk: Path, pages: int) -> None:
    """Leave so many pages free on the disk."""
    found = os.statvfs(disk)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    subprocess.run(["mount", "-o", f"remount,size={used + pages * PAGE_BYTES}", disk], check=True)


def held_in_words(done: subprocess.CompletedProcess[str]) -> None:
    """Hold a command on a full disk to an exit code that is documented, and to words."""
    assert done.returncode not in (1, 70) and done.returncode >= 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or "No space left" in done.stderr or "full" in done.stderr or "free" in done.stderr


@needs_root
@pytest.mark.parametrize(
    ("command", "step_pages"),
    [(DEPLOY, 1), (("bench", "pi5", "-w", "quick", "--json"), 4), (OPTIMIZE, 300)],
    ids=["deploy", "bench", "optimize"],
)
def test_a_disk_of_this_machine_is_full_at_each_write(
    table: Table,
    pi5: Path,
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    step_pages: int,
) -> None:
    """The folders get room for so many pages more each time, until the command has all that it writes."""
    row = table[f"this machine's disk full at each write: `{command[0]}`"]
    shutil.copytree(tmp_path / "config", disk / "config")
    if command != OPTIMIZE:
        shutil.copytree(tmp_path / "cache", disk / "cache")
    for kind in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"EDGEPHI_{kind}_DIR", str(disk / kind.lower()))
    fresh = tmp_path / "fresh"
    shutil.copytree(disk, fresh)
    for pages in range(0, 4000, step_pages):
        for entry in disk.iterdir():
            shutil.rmtree(entry)
        shutil.copytree(fresh, disk, dirs_exist_ok=True)
        full_after(disk, pages)
        done = edgephi(*command)
        held_in_words(done)
        with connect(load_target("pi5")) as device:
            row.answers.append(answering(device))
        whole_here()
        complete = done.returncode == 0 and "isn't kept" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        timed(*command)
        row.completed += 1
        if complete:
            break
    assert pages > 0, "the disk was full at least once"
