"""The Ansible role, run by the real ansible-playbook against a loopback sshd."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, follow
from tests.support.devices import pointer
from tests.support.fleets import over, write_targets
from tests.support.paths import REPO
from tests.support.registries import needs_registry, registry
from tests.support.servers import needs_sshd
from toolkit.bundle.registry import BlobSource, parse_place
from toolkit.bundle.registry.transfer import push_bundle
from toolkit.catalog import load_profile
from toolkit.config import config_dir
from toolkit.deploy.kit import export_kit
from toolkit.emulate import PrivateSshd

ANSIBLE = REPO / "ansible"
MINOR = ".".join(platform.python_version_tuple()[:2])


def playbook(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    settings = {"ANSIBLE_HOME": str(Path.cwd()), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1"}
    variables = os.environ | settings | {"PYTHONPATH": str(REPO)}
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", ANSIBLE / f"{name}.yml", *options],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("path", sorted(ANSIBLE.glob("*.yml")), ids=lambda path: path.stem)
def test_the_playbooks_and_their_role_are_read(path: Path) -> None:
    done = playbook(path.stem, "--syntax-check", "-i", "localhost,")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def device(tmp_path: Path, runtimes: Path) -> Iterator[Path]:
    """The install root of target `pi5` behind an sshd, in an inventory that edgephi prints."""
    root = tmp_path / "device"
    with PrivateSshd(tmp_path / "sshd") as server:
        target = over(server, "pi5", root).model_copy(update={"python": sys.executable})
        write_targets(config_dir() / "targets", [target])
        inventory = Path("edgephi-inventory")
        inventory.write_text(f'#!/bin/sh\nexec {sys.executable} -m toolkit inventory --ansible "$@"\n')
        inventory.chmod(0o755)
        yield root


def kit_of(recipe: str, folder: Path) -> Path:
    follow(export_kit(build(recipe), [load_profile("local")], folder, pythons=[MINOR]))
    return folder


def changes(done: subprocess.CompletedProcess[str]) -> int:
    """The number of tasks that changed the one host, after asserting that none failed."""
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = re.findall(r"^pi5 +: ok=\d+ +changed=(\d+) +unreachable=0 +failed=0", done.stdout, re.MULTILINE)
    return int(line)


def install(kit: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return playbook("install", "-i", "./edgephi-inventory", "-e", f"edgephi_bundle_kit={kit}", *options)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_sshd
def test_a_bundle_comes_goes_back_and_never_half(device: Path, runtimes: Path, tmp_path: Path) -> None:
    int4, fp32 = build("int4-rtn-b32"), build("fp32")
    first, second = kit_of("int4-rtn-b32", tmp_path / "first"), kit_of("fp32", tmp_path / "second")

    assert changes(install(first, "--check")) > 0
    assert not device.exists()
    device.mkdir(mode=0o700)
    (device / "runtimes").symlink_to(runtimes)
    assert changes(install(first)) > 0
    assert pointer(device)["release"] == int4.id
    assert changes(install(first)) == 0
    assert changes(install(first, "--check")) == 0

    # A file that doesn't match its hash, as after a fault of the controller's disk.
    torn = tmp_path / "torn"
    shutil.copytree(second, torn)
    known = {artifact.sha256 for artifact in int4.manifest.artifacts}
    victim = next(path for path in (torn / "blobs").iterdir() if path.name not in known)
    victim.chmod(0o644)
    victim.write_bytes(b"\0" + victim.read_bytes()[1:])
    failed = install(torn)
    assert failed.returncode != 0
    assert "SHA-256" in failed.stdout
    assert pointer(device)["release"] == int4.id
    assert not (device / "releases" / fp32.id).exists()

    assert changes(install(second)) > 0
    assert pointer(device)["release"] == fp32.id
    assert changes(playbook("rollback", "-i", "./edgephi-inventory")) == 1
    assert pointer(device)["release"] == int4.id
    nothing_before = playbook("rollback", "-i", "./edgephi-inventory")
    assert nothing_before.returncode != 0
    assert "there is no release to go back to" in nothing_before.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_sshd
def test_packages_without_a_locked_hash_need_a_word_of_the_operator(device: Path, tmp_path: Path) -> None:
    kit = kit_of("int4-rtn-b32", tmp_path / "kit")
    parts = json.loads((kit / "kit.json").read_text())
    provision = parts["profiles"]["local"]["runtimes"][MINOR]["provision"]
    del provision["locked"]
    provision["packages"] = ["no-such-runtime==9.0"]
    (kit / "kit.json").write_text(json.dumps(parts))
    refused = install(kit)
    assert refused.returncode != 0
    assert "no hashes are locked for no-such-runtime==9.0: whatever the device's index has would be" in refused.stdout
    assert not (device / "runtimes").exists()
    tried = install(kit, "-e", "edgephi_bundle_unlocked_packages=true")
    assert tried.returncode != 0
    assert "no hashes are locked" not in tried.stdout
    assert "TASK [edgephi_bundle : Install the runtime]" in tried.stdout, tried.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_sshd
@needs_registry
def test_devices_pull_what_the_kit_has_not(device: Path, runtimes: Path, tmp_path: Path) -> None:
    fp32, int4 = build("fp32"), build("int4-rtn-b32")
    device.mkdir(mode=0o700)
    (device / "runtimes").symlink_to(runtimes)
    with registry(tmp_path / "registry") as there:
        source = BlobSource(there.host, "models/nano")
        for bundle in (fp32, int4):
            follow(push_bundle(bundle, parse_place(there.reference(f"models/nano:{bundle.id[:12]}"))))
            kit = tmp_path / bundle.id[:12]
            follow(export_kit(bundle, [load_profile("local")], kit, pythons=[MINOR], source=source))
            assert list((kit / "blobs").iterdir()) == []
            assert changes(install(kit)) > 0
            assert pointer(device)["release"] == bundle.id
            assert changes(install(kit)) == 0
        weights = next(a for a in int4.manifest.artifacts if a.path == "model.onnx.data")
        sent = re.findall(rf'"GET \S+{weights.sha256} HTTP/1\.1" 206 (\d+) ', there.log())
    # The embedding, which the two bundles share, was copied on the device.
    assert [int(count) < weights.size_bytes - 3 * 2**20 for count in sent] == [True]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_sshd
def test_a_device_of_another_class_is_refused(device: Path, tmp_path: Path) -> None:
    bundle, pi5 = build("int4-rtn-b32"), load_profile("raspberry-pi-5-8gb")
    follow(export_kit(bundle, [pi5], tmp_path / "kit"))
    named = install(tmp_path / "kit")
    assert named.returncode != 0 and "the host's profile is 'local'" in named.stdout
    taken = install(tmp_path / "kit", "-e", "edgephi_bundle_profile=raspberry-pi-5-8gb")
    assert taken.returncode != 0 and "raspberry-pi-5-8gb is linux on aarch64" in taken.stdout
    assert not (device / "releases").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_sshd
def test_a_runtime_comes_with_its_wheels(device: Path, tmp_path: Path) -> None:
    bundle, here = build("int4-rtn-b32"), load_profile("local")
    follow(export_kit(bundle, [here], tmp_path / "kit", pythons=[MINOR], wheels=True))
    parts = json.loads((tmp_path / "kit" / "kit.json").read_text())
    assert changes(install(tmp_path / "kit")) > 0
    lock = parts["profiles"]["local"]["runtimes"][MINOR]["lock"]
    assert [path.name for path in (device / "runtimes").iterdir()] == [lock]
    assert pointer(device)["release"] == bundle.id
