"""A whole emulated computer as the device: its power is cut, it reboots, its clock jumps, its memory runs out.

`make test-faults` runs it with the others, `make test-power` alone; both write the second table in docs/reliability.md.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.power.deployment import (
    INSTALL_ROOT,
    NEW,
    NOTHING,
    OLD,
    Story,
    command,
    mounted,
    put_program,
    runtime_files,
    target_of,
    uploads,
    write_sparse,
)
from tests.power.initrd import DATA, RUN
from tests.power.kernel import Kernel, fetch_kernel
from tests.power.machine import EMULATOR, Machine, make_disk
from tests.power.volatile_disk import Recording, VolatileDisk
from tests.support.builds import bundle as build, follow
from tests.support.faults import Table, broken_by, recorded, says, sent
from tests.support.servers import needs_root
from toolkit.agent.requests import Activate, RollBack
from toolkit.config import cache_dir
from toolkit.deploy import Delivery, deploy, prepare
from toolkit.deploy.install import install
from toolkit.deploy.push import push
from toolkit.deploy.releases import load_active, prune, verify
from toolkit.device import connect
from toolkit.emulate.rootfs import Definition, root_file_system
from toolkit.errors import AgentError, DeviceError, HostUnreachable, ToolkitError

pytestmark = [
    pytest.mark.power,
    needs_root,
    pytest.mark.skipif("CI" not in os.environ and shutil.which(EMULATOR) is None, reason="needs qemu-system-arm"),
    pytest.mark.timeout(1800),
]

OFFLINE = Delivery(offline=True)
DISK_BYTES, MEMORY_BYTES = 512 << 20, 4 << 30
# For each phase the number of cuts, and the release that is active before and after it.
PHASES = {
    "install the runtime": (4, NOTHING, NOTHING),
    "first deployment": (4, NOTHING, OLD),
    "push": (4, OLD, OLD),
    "install": (8, OLD, OLD),
    "activate": (14, OLD, NEW),
    "roll back": (8, NEW, OLD),
    "prune": (6, OLD, OLD),
}
CUTS = [(name, seed) for name, (count, _, _) in PHASES.items() for seed in range(count)]


@dataclass(frozen=True)
class Parts:
    """The parts of a machine, from downloads that edgephi's cache keeps."""

    kernel: Kernel
    root_disk: Path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    kernel = follow(fetch_kernel(cache_dir() / "emulator"))
    root_disk = tmp_path_factory.mktemp("root") / "disk"
    make_disk(root_disk, 1 << 30, follow(root_file_system(Definition())))
    return Parts(kernel, root_disk)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VolatileDisk]:
    folder = tmp_path_factory.mktemp("data")
    make_disk(folder / "disk", DISK_BYTES)
    with VolatileDisk((folder / "disk").read_bytes(), folder / "socket") as disk:
        (folder / "disk").unlink()
        yield disk


@pytest.fixture(scope="module")
def machine(parts: Parts, disk: VolatileDisk) -> Iterator[Machine]:
    with Machine(parts.kernel, parts.root_disk, disk.blockdev, MEMORY_BYTES) as machine:
        yield machine


@pytest.fixture(scope="module")
def story(machine: Machine, disk: VolatileDisk, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Record a deployment of a runtime and a bundle; then a second one is installed, activated, rolled back, pruned."""
    old, new = build("int4-rtn-b128"), build("int4-rtn-b32")
    during = disk.recording.phase
    with connect(target_of(machine)) as device:
        with during("install the runtime"):
            runtime = follow(prepare(device, OFFLINE)).runtime
        with during("first deployment"):
            follow(deploy(old, device, OFFLINE))
        with during("push"):
            follow(push(device, uploads(new)))
        with during("install"):
            follow(install(new, device))
        for _ in range(3):
            with during("activate"):
                device.ask(Activate(release=new.id, runtime=runtime.lock))
            with during("roll back"):
                device.ask(RollBack())
        with during("prune"):
            follow(prune(device, keep=0))
    recording = disk.recording.so_far()
    folder = tmp_path_factory.mktemp("after") / "disk"
    with mounted(recording.cut(len(recording.log), random.Random(0)), folder):
        files = dict(runtime_files(folder / INSTALL_ROOT / "runtimes" / runtime.lock / "venv"))
    answers = {name: (before, after) for name, (_, before, after) in PHASES.items()}
    return Story(recording, answers, old, new, runtime.lock, files)


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    with recorded("power") as table:
        yield table


@pytest.mark.parametrize(("name", "seed"), CUTS)
def test_the_power_is_cut(table: Table, story: Story, tmp_path: Path, name: str, seed: int) -> None:
    chance = random.Random(f"{name} {seed}")
    phase, position = story.moment(name, chance)
    row = table[f"power cut: {name}"]
    with mounted(story.recording.cut(position, chance), tmp_path / "disk") as device:
        answer = story.answer(device)
        assert answer in story.admissible(phase, position)
        row.answers.append(answer)
        story.complete(device)
        row.completed += 1


# A Python whose flushes do nothing, as if the agent didn't flush.
FORGETFUL = """#!/bin/sh
mkdir -p /tmp/forgetful
echo 'import os; os.fsync = lambda file: None; os.sync = lambda: None' > /tmp/forgetful/sitecustomize.py
[ "$1" = -E ] && shift
PYTHONPATH=/tmp/forgetful exec python3 "$@"
"""


def test_without_flushes_releases_are_lost(machine: Machine, disk: VolatileDisk, story: Story, tmp_path: Path) -> None:
    """An agent that flushes nothing fails the same examination: so it is the flushes that keep a release."""
    with connect(target_of(machine, python=put_program(machine, "forgetful", FORGETFUL, tmp_path))) as device:
        follow(install(story.new, device))
        device.ask(Activate(release=story.new.id, runtime=story.lock))
        # Another program flushes its own file: the file system then writes the others' names, but not their content.
        device.transport.start(["sync", f"{DATA}/{INSTALL_ROOT}/push.lock"]).wait()
    recording = disk.recording.so_far()
    assert any(damage(story, recording, seed, tmp_path) for seed in range(5))


def damage(story: Story, recording: Recording, seed: int, tmp_path: Path) -> bool:
    left = recording.cut(len(recording.log), random.Random(seed))
    with mounted(left, tmp_path / f"disk{seed}") as device:
        try:
            return story.answer(device) != NEW
        except (ToolkitError, AssertionError):
            return True


@pytest.mark.parametrize("name", ["first deployment", "install", "activate"])
def test_a_device_boots_after_the_cut(table: Table, parts: Parts, story: Story, tmp_path: Path, name: str) -> None:
    chance = random.Random(name)
    phase, position = story.moment(name, chance)
    image = tmp_path / "disk"
    write_sparse(image, story.recording.cut(position, chance))
    data = f"driver=raw,file.driver=file,file.filename={image}"
    row = table[f"power cut and boot: {name}"]
    with Machine(parts.kernel, parts.root_disk, data, MEMORY_BYTES) as machine:
        answer = answering(machine, story)
        assert answer in story.admissible(phase, position)
        row.answers.append(answer)
        redeploy(machine, story)
        row.completed += 1


def answering(machine: Machine, story: Story) -> str:
    """The active release of the machine, after checking that it is whole, loads and generates."""
    with connect(target_of(machine)) as device:
        follow(verify(device)).enforce()
        active = follow(load_active(device))
    return story.named(active)


def redeploy(machine: Machine, story: Story) -> None:
    """Deploy the new bundle, which loads and generates before it becomes active; assert that all releases are whole."""
    with connect(target_of(machine)) as device:
        follow(deploy(story.new, device, OFFLINE))
        found = follow(verify(device))
    found.enforce()
    assert found.active == story.new.id


@pytest.fixture
def device_with_old(machine: Machine, story: Story) -> Machine:
    """The machine with the old release active and no other one installed."""
    with connect(target_of(machine)) as device:
        device.ask(Activate(release=story.old.id, runtime=story.lock))
        follow(prune(device, keep=0))
    return machine


def test_the_device_reboots_while_files_are_pushed(table: Table, device_with_old: Machine, story: Story) -> None:
    machine, row = device_with_old, table["device rebooted while files are pushed"]
    with connect(target_of(machine)) as other, connect(target_of(machine), limit_bytes_per_s=3e5) as device:
        # A line on an open connection arrives sooner than a new connection opens. The reboot flushes the disks.
        script = f"read word && {RUN}/busybox reboot -f"
        reboot = other.transport.start([f"{RUN}/busybox", "sh", "-c", script])
        broken_by(push(device, uploads(story.new)), sent(1_500_000), lambda: reboot.send(b"now\n"))
        # Until the connection breaks, the sshd from before the reboot still answers.
        with pytest.raises(HostUnreachable):
            reboot.wait()
    machine.wait_until_up()
    row.answers.append(answering(machine, story))
    with connect(target_of(machine)) as device:
        total = sum(artifact.size_bytes for artifact in story.new.manifest.artifacts)
        assert 0 < follow(push(device, uploads(story.new))) < total - 1_000_000
    redeploy(machine, story)
    row.completed += 1


@pytest.mark.parametrize(
    ("where", "jump", "unix_s"), [("push ", "forward", 4_000_000_000), ("load it", "back", 1_000_000_000)]
)
def test_the_clock_jumps(
    table: Table, device_with_old: Machine, story: Story, where: str, jump: str, unix_s: int
) -> None:
    machine, row = device_with_old, table[f"clock {jump} by decades in the middle of a deployment"]
    with connect(target_of(machine)) as device:
        broken_by(deploy(story.new, device, OFFLINE), says(where), lambda: command(machine, "date", "-s", f"@{unix_s}"))
    try:
        row.answers.append(answering(machine, story))
        with connect(target_of(machine)) as device:
            assert follow(prune(device, keep=1)).kept
            device.ask(RollBack())
        assert answering(machine, story) == OLD
        redeploy(machine, story)
        row.completed += 1
    finally:
        command(machine, "date", "-s", f"@{int(time.time())}")


# The limit is enough memory for the agent, and too little for the runtime.
LIMITED = """#!/bin/sh
set -e
echo +memory > /sys/fs/cgroup/cgroup.subtree_control
mkdir -p /sys/fs/cgroup/limited
echo 24M > /sys/fs/cgroup/limited/memory.max
echo $$ > /sys/fs/cgroup/limited/cgroup.procs
exec python3 "$@"
"""


def test_memory_runs_out_in_the_load_check(
    table: Table, device_with_old: Machine, story: Story, tmp_path: Path
) -> None:
    machine, row = device_with_old, table["killed for its memory while it loads the new release"]
    python = put_program(machine, "limited", LIMITED, tmp_path)
    with connect(target_of(machine, python=python)) as device, pytest.raises(AgentError, match="SIGKILL") as caught:
        follow(deploy(story.new, device, OFFLINE))
    assert "out-of-memory" in str(caught.value.hint)
    row.answers.append(answering(machine, story))
    redeploy(machine, story)
    row.completed += 1


def test_every_disk_is_read_only(table: Table, device_with_old: Machine, story: Story) -> None:
    machine, row = device_with_old, table["root file system and install root read-only"]
    for folder in (DATA, "/"):
        command(machine, "mount", "-o", "remount,ro", folder)
    with connect(target_of(machine)) as device, pytest.raises(DeviceError, match=r"[Rr]ead-only file system"):
        follow(deploy(story.new, device, OFFLINE))
    with connect(target_of(machine)) as device:
        row.answers.append(story.named(follow(load_active(device))))
    for folder in (DATA, "/"):
        command(machine, "mount", "-o", "remount,rw", folder)
    redeploy(machine, story)
    row.completed += 1
