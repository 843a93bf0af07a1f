"""Deployments with a fault in the middle: afterwards the device answers with the old or the new release, whole, and the
same command completes.

`make test-faults` runs all of it and writes the first table in docs/reliability.md.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, follow
from tests.support.devices import target_over
from tests.support.faults import Table, answering, broken_by, new, old, recorded, says, sent, settle
from tests.support.registries import LocalRegistry, needs_registry, registry
from tests.support.servers import Relay, needs_root, needs_sshd, small_disk
from toolkit.agent import agent_archive
from toolkit.agent.requests import ListReleases
from toolkit.bundle import Bundle
from toolkit.bundle.registry import BlobSource, parse_place
from toolkit.bundle.registry.transfer import push_bundle
from toolkit.catalog import Target
from toolkit.deploy import Delivery, deploy
from toolkit.deploy.install import install
from toolkit.deploy.releases import verify
from toolkit.device import connect
from toolkit.emulate import PrivateSshd
from toolkit.errors import CorruptBundle, DeviceError

pytestmark = [pytest.mark.faults, needs_sshd]

CHANCE = random.Random(20)


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    with recorded("faults") as table:
        yield table


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrivateSshd]:
    with PrivateSshd(tmp_path / "server") as server:
        yield server


@pytest.fixture
def target(server: PrivateSshd, root: Path) -> Target:
    """A device on which the old release is active."""
    target = target_over(server, root)
    with connect(target) as device:
        follow(deploy(old(), device))
    return target


def over(relay: Relay, target: Target, tmp_path: Path) -> Target:
    assert target.known_hosts is not None
    known = tmp_path / "known_hosts-relay"
    known.write_text(target.known_hosts.read_text().replace(f":{target.port}", f":{relay.port}"))
    return target.model_copy(update={"port": relay.port, "known_hosts": known})


# Offsets in the 2.6 MB that are left to push once the embedding is copied on the device.
@pytest.mark.parametrize("offset", sorted(CHANCE.sample(range(1, 2_500_000), 20)))
def test_the_link_is_cut_while_files_are_pushed(table: Table, target: Target, tmp_path: Path, offset: int) -> None:
    assert target.port is not None
    relay = Relay(target.port)
    # The limit makes the push slow enough to be cut in the middle.
    with connect(over(relay, target, tmp_path), limit_bytes_per_s=8e6) as device:
        broken_by(deploy(new(), device), sent(offset), relay.cut)
    settle(table, "link cut while files are pushed", target)


def test_the_link_is_cut_while_the_device_copies(table: Table, target: Target, tmp_path: Path) -> None:
    assert target.port is not None
    relay = Relay(target.port)
    with connect(over(relay, target, tmp_path)) as device:
        broken_by(deploy(new(), device), sent(1, "reuse"), relay.cut)
    settle(table, "link cut while the device copies what it has", target)


@pytest.mark.parametrize("text", ["there and install it", "load it and generate"])
def test_the_link_is_cut_later(table: Table, target: Target, tmp_path: Path, text: str) -> None:
    assert target.port is not None
    relay = Relay(target.port)
    with connect(over(relay, target, tmp_path)) as device:
        broken_by(deploy(new(), device), says(text), relay.cut)
    settle(table, "link cut while the device verifies or loads", target)


@pytest.mark.parametrize("offset", [1, 900_000, 2_000_000])
def test_sshd_and_its_sessions_are_killed(
    table: Table, target: Target, server: PrivateSshd, root: Path, tmp_path: Path, offset: int
) -> None:
    with connect(target, limit_bytes_per_s=8e6) as device:
        broken_by(deploy(new(), device), sent(offset), server.kill)
    with PrivateSshd(tmp_path / "again") as again:
        settle(table, "sshd killed with its sessions", target_over(again, root))


@pytest.fixture
def published(tmp_path: Path) -> Iterator[LocalRegistry]:
    with registry(tmp_path / "registry") as running:
        follow(push_bundle(new(), parse_place(running.reference())))
        yield running


def pulled_from(running: LocalRegistry) -> Delivery:
    return Delivery(source=BlobSource(running.host, "models/nano"))


def kill_the_agent(root: Path) -> None:
    """Kill every agent of the root: during a pull only the pulling one holds anything."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{root}/agent/agent-".encode() in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)


# A pull reports its progress every 0.2 s: the fault comes at the first report behind the offset.
@needs_registry
@pytest.mark.parametrize("offset", sorted(CHANCE.sample(range(1, 2_000_000), 5)))
@pytest.mark.parametrize("what", ["link cut", "agent killed"])
def test_a_pull_ends_in_the_middle(
    table: Table, target: Target, root: Path, published: LocalRegistry, tmp_path: Path, what: str, offset: int
) -> None:
    assert target.port is not None
    relay, delivery = Relay(target.port), pulled_from(published)
    fault = relay.cut if what == "link cut" else lambda: kill_the_agent(root)
    with connect(over(relay, target, tmp_path), limit_bytes_per_s=1e6) as device:
        broken_by(deploy(new(), device, delivery), sent(offset, "pull"), fault)
    settle(table, f"{what} while the device pulls", target, delivery)


@needs_registry
@pytest.mark.parametrize("offset", [1, 900_000, 1_900_000])
def test_the_registry_is_killed(
    table: Table, target: Target, published: LocalRegistry, tmp_path: Path, offset: int
) -> None:
    with connect(target, limit_bytes_per_s=1e6) as device:
        broken_by(deploy(new(), device, pulled_from(published)), sent(offset, "pull"), published.kill)
    with registry(tmp_path / "registry") as again:
        settle(table, "registry killed while the device pulls", target, pulled_from(again))


@pytest.fixture
def disk(tmp_path: Path, runtimes: Path) -> Iterator[Path]:
    """A small disk as install root."""
    with small_disk(tmp_path / "disk", "160m") as folder:
        (folder / "runtimes").symlink_to(runtimes)
        yield folder


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("wb") as file:
        while True:
            file.write(b"x" * 65536)
            file.flush()


@needs_root
@pytest.mark.parametrize(
    "where", ["300000", "1500000", "2500000", "verify phi3-nano-int4-rtn-b32 there", "load it and generate"]
)
def test_the_disk_becomes_full(
    table: Table, server: PrivateSshd, disk: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr("toolkit.deploy.push.SPARE_BYTES", 0)
    target = target_over(server, disk)
    with connect(target) as device:
        follow(deploy(old(), device))
    strike = sent(int(where)) if where.isdigit() else says(where)
    with connect(target, limit_bytes_per_s=8e6) as device:
        broken_by(deploy(new(), device), strike, lambda: fill(disk))
    with connect(target) as device:
        answer = answering(device)
    assert answer == "old"
    (disk / "filler").unlink()
    settle(table, "disk full", target)


@needs_root
def test_the_disk_becomes_read_only(table: Table, server: PrivateSshd, disk: Path) -> None:
    target = target_over(server, disk)
    with connect(target) as device:
        follow(deploy(old(), device))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with connect(target) as device, pytest.raises(DeviceError, match=r"[Rr]ead-only file system"):
        follow(deploy(new(), device))
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    settle(table, "root read-only", target)


@pytest.mark.parametrize("seed", range(10))
def test_a_bit_flips_in_a_stored_file(table: Table, target: Target, root: Path, seed: int) -> None:
    chance = random.Random(seed)
    with connect(target) as device:
        follow(deploy(new(), device))
        files = [path for path in (root / "releases" / new().id).iterdir() if path.stat().st_size]
        path = chance.choice(sorted(files))
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.chmod(0o644)
        path.write_bytes(content)
        with pytest.raises(CorruptBundle):
            follow(verify(device)).enforce()
        follow(verify(device, repair=True))
    settle(table, "bit flipped in a stored file, found by `verify`, removed by `--repair`", target)


def test_a_bit_flips_in_a_file_that_the_next_bundle_shares(table: Table, target: Target, root: Path) -> None:
    sha256 = next(artifact.sha256 for artifact in new().manifest.artifacts if artifact.path == "tokenizer.json")
    path = root / "blobs" / "sha256" / sha256
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    settle(table, "bit flipped in a stored file that the next bundle has too", target)


@pytest.mark.parametrize("seed", range(5))
def test_a_bit_flips_on_the_way(table: Table, target: Target, root: Path, seed: int) -> None:
    chance = random.Random(seed)

    def flip() -> None:
        part = max((root / "incoming").iterdir(), key=lambda path: path.stat().st_size)
        with part.open("r+b") as file:
            file.seek(chance.randrange(part.stat().st_size))
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    with connect(target) as device:
        broken_by(deploy(new(), device), says("verify phi3-nano-int4-rtn-b32 there"), flip)
    settle(table, "bit flipped in a file that has just arrived", target)


@pytest.mark.parametrize("same", [True, False], ids=["the same bundle", "two bundles"])
def test_two_push_at_once(table: Table, target: Target, same: bool) -> None:
    bundles = [new(), new() if same else build("int4-rtn-b128")]
    errors: list[BaseException] = []

    def push(bundle: Bundle) -> None:
        try:
            with connect(target, limit_bytes_per_s=8e6) as device:
                follow(install(bundle, device))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=push, args=(bundle,)) for bundle in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    settle(table, "two pushers at once", target)


# This program ends the agent before its n-th change to the file system, like a power cut without further flushes.
ENDING = """
import os, runpy, sys
left = int(sys.argv[1])
def ending(call):
    def wrapped(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return call(*args, **kwargs)
    return wrapped
for name in ("unlink", "rename", "replace", "rmdir", "link", "mkdir", "fsync", "chmod"):
    setattr(os, name, ending(getattr(os, name)))
sys.argv = [sys.argv[2]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def killed_agent(root: Path, request: dict[str, object], calls: int) -> int:
    agent = root / "agent" / "agent-of-test.pyz"
    if not agent.exists():
        agent.write_bytes(agent_archive())
    line = json.dumps({"protocol": 1, "by": "test", **request}) + "\n"
    done = subprocess.run(
        [sys.executable, "-c", ENDING, str(calls), str(agent)], input=line, capture_output=True, text=True
    )
    return done.returncode


@pytest.mark.parametrize("op", ["install", "activate"])
def test_the_agent_is_killed_at_every_change_to_the_disk(table: Table, target: Target, root: Path, op: str) -> None:
    with connect(target) as device:
        follow(install(new(), device))
        lock = device.ask(ListReleases()).pointer.runtime
        if op == "install":
            shutil.rmtree(root / "releases" / new().id)
            arrived = [artifact.sha256 for artifact in new().manifest.artifacts]
            for sha256 in {*arrived} - {artifact.sha256 for artifact in old().manifest.artifacts}:
                blob = root / "blobs" / "sha256" / sha256
                blob.rename(root / "incoming" / f"{sha256}.part")
        request: dict[str, object] = {"op": op, "release": new().id, "runtime": lock, "manifest": new().manifest_text}
        row = table[f"agent killed at each change to the disk: {op}"]
        for calls in range(200):
            code = killed_agent(root, request, calls)
            row.answers.append(answering(device))
            if code == 0:
                break
            assert code == 9
        assert calls > 3
        # Each run after the first repeated the request that the run before it had not completed.
        row.completed += len(row.answers) - 1
    settle(table, f"agent killed at each change to the disk: {op}", target)
