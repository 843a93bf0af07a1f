"""A deployment onto an emulated device that is recorded write by write, and its remains after a power cut."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.power.initrd import DATA, RUN
from tests.power.machine import Machine
from tests.power.volatile_disk import Phase, Recording
from tests.support.builds import follow
from toolkit.agent.requests import Activate, Install, ListReleases, Provision
from toolkit.bundle import Bundle
from toolkit.catalog import Target
from toolkit.deploy.push import Upload, push
from toolkit.deploy.releases import verify
from toolkit.device import Device, connect

INSTALL_ROOT = "edgephi"
NOTHING, OLD, NEW = "nothing", "old", "new"


def target_of(machine: Machine, python: str = "python3") -> Target:
    """The emulated machine as a target; its install root is on its second disk."""
    return Target(
        name="board",
        host=machine.host,
        port=machine.port,
        user=machine.user,
        profile="raspberry-pi-5-4gb",
        install_root=f"{DATA}/{INSTALL_ROOT}",
        identity_file=machine.identity_file,
        known_hosts=machine.known_hosts,
        python=python,
    )


def uploads(bundle: Bundle) -> list[Upload]:
    return [Upload(bundle.path / a.path, a.sha256, a.size_bytes) for a in bundle.manifest.artifacts]


def put_program(machine: Machine, name: str, text: str, scratch: Path) -> str:
    """Put a script onto the machine; returns its path there."""
    (scratch / name).write_text(text)
    with connect(target_of(machine)) as device:
        for _ in device.transport.put(scratch / name, f"/root/{name}"):
            pass
        device.transport.start(["chmod", "755", f"/root/{name}"]).wait()
    return f"/root/{name}"


def command(machine: Machine, *argv: str) -> None:
    """Run one of busybox's commands on the machine."""
    with connect(target_of(machine)) as device:
        process = device.transport.start([f"{RUN}/busybox", *argv])
        assert process.wait() == 0, process.stderr_tail()


@dataclass(frozen=True)
class Story:
    """A recorded deployment. `answers` has for each phase the release that was active before it and the one after it;
    `runtime` has the SHA-256 of each file of the runtime that was installed under the name `lock`.
    """

    recording: Recording
    answers: Mapping[str, tuple[str, str]]
    old: Bundle
    new: Bundle
    lock: str
    runtime: Mapping[str, str]

    def moment(self, name: str, chance: random.Random) -> tuple[Phase, int]:
        """A random moment of a phase, from its start to its end, both included."""
        phase = chance.choice([phase for phase in self.recording.phases if phase.name == name])
        return phase, chance.randint(phase.start, phase.end)

    def admissible(self, phase: Phase, position: int) -> set[str]:
        """The releases that may be active after a cut then: a phase that the device reported done stays done."""
        before, after = self.answers[phase.name]
        return {after} if position == phase.end else {before, after}

    def answer(self, device: Device) -> str:
        """The active release of a device on this machine, after checking that every release in its store is whole, and
        the runtime too if it counts as installed.

        Raises ToolkitError or AssertionError when something isn't whole.
        """
        follow(verify(device)).enforce()
        pointer = device.ask(ListReleases()).pointer
        runtimes = Path(device.target.install_root) / "runtimes"
        if (runtimes / self.lock / "ready.json").exists():
            assert dict(runtime_files(runtimes / self.lock / "venv")) == self.runtime
        if pointer.release is not None:
            assert pointer.runtime == self.lock
        return self.named(pointer.release)

    def named(self, release: str | None) -> str:
        return {None: NOTHING, self.old.id: OLD, self.new.id: NEW}[release]

    def complete(self, device: Device) -> None:
        """Repeat a deployment's steps without the load check: the runtime there is for another processor."""
        follow(push(device, uploads(self.new)))
        device.ask(Install(release=self.new.id, manifest=self.new.manifest_text))
        if device.ask(Provision(lock=self.lock, packages=[], query_only=True)).installed is not None:
            device.ask(Activate(release=self.new.id, runtime=self.lock))
            assert self.answer(device) == NEW
        follow(verify(device)).enforce()


def runtime_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Each file of a runtime and its SHA-256, without the files that Python writes by itself."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != "ready.json" and path.suffix != ".pyc":
            yield str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def mounted(disk: bytes | bytearray, folder: Path) -> Iterator[Device]:
    """Mount a disk on this machine, so that its file system recovers and an agent works on its install root."""
    folder.mkdir()
    image = folder.with_suffix(".img")
    write_sparse(image, disk)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        target = Target(name="cut", transport="local", profile="local", install_root=str(folder / INSTALL_ROOT))
        with connect(target) as device:
            yield device
    finally:
        subprocess.run(["umount", folder], check=True)
        image.unlink()


def write_sparse(path: Path, disk: bytes | bytearray) -> None:
    """Write a file of that content, with holes where it is zero."""
    empty, view = bytes(1 << 20), memoryview(disk)
    with path.open("wb") as file:
        file.truncate(len(disk))
        for start in range(0, len(disk), len(empty)):
            piece = view[start : start + len(empty)]
            if piece != empty:
                file.seek(start)
                file.write(piece)
