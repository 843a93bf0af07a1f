"""The installed releases of a target: activated, verified, repaired, pruned."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, follow
from tests.support.devices import device_at, pointer, steps, target_at, target_over
from tests.support.keys import make_key, write_signers
from toolkit.agent.requests import RollBack
from toolkit.bundle import open_bundle
from toolkit.bundle.signatures import sign
from toolkit.deploy import deploy
from toolkit.deploy.install import install
from toolkit.deploy.push import CHUNK_BYTES
from toolkit.deploy.releases import activate, prune, verify
from toolkit.device import Device, connect
from toolkit.emulate import EmbeddedServer
from toolkit.errors import ConfigError, CorruptBundle, SignatureError
from toolkit.events import Event, Step, Warning_

NAMES = ("fp32", "int4-rtn-b32", "int4-rtn-b128")


@pytest.fixture
def device(root: Path, tmp_path: Path) -> Iterator[Device]:
    """A device behind SSH, so that its files aren't links to the bundles here."""
    with EmbeddedServer(tmp_path) as server, connect(target_over(server, root)) as device:
        yield device


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def test_activate_by_name_by_prefix_and_rollback(root: Path) -> None:
    fp32, int4 = build("fp32"), build("int4-rtn-b32")
    with device_at(root) as device:
        follow(deploy(fp32, device))
        follow(deploy(int4, device))
        assert follow(activate(device, fp32.manifest.name)) == fp32.id
        assert follow(activate(device, int4.id[:10])) == int4.id
        assert device.ask(RollBack()).release == fp32.id
        with pytest.raises(ConfigError) as error:
            follow(activate(device, "nothing"))
    assert error.value.message == "here: no release called 'nothing'"
    assert pointer(root)["release"] == fp32.id


def test_only_what_a_signer_has_signed_is_activated(root: Path, tmp_path: Path) -> None:
    shutil.copytree(build("int4-rtn-b32").path, tmp_path / "copy")
    bundle = open_bundle(tmp_path / "copy")
    with device_at(root) as device:
        follow(install(bundle, device))
    key = make_key(tmp_path / "key")
    demanding = target_at(root).model_copy(update={"allowed_signers": write_signers(tmp_path / "signers", alice=key)})
    with connect(demanding) as device:
        with pytest.raises(SignatureError, match=r"the release .* isn't signed"):
            follow(activate(device, bundle.id[:10]))
        assert not (root / "current.json").exists()
        follow(sign(bundle, key))
        follow(install(bundle, device))
        assert follow(activate(device, bundle.id[:10])) == bundle.id
    write_signers(tmp_path / "signers")
    with connect(demanding) as device, pytest.raises(SignatureError, match="is no signer's"):
        follow(activate(device, bundle.id[:10]))


def test_what_is_whole_is_said_to_be(device: Device) -> None:
    follow(deploy(build("int4-rtn-b32"), device))
    found = follow(verify(device))
    assert [(checked.release, checked.damaged) for checked in found.releases] == [(build("int4-rtn-b32").id, ())]
    assert found.active == build("int4-rtn-b32").id
    found.enforce()


def test_a_flipped_bit_is_found_and_a_repaired_device_gets_that_file_alone_again(device: Device, root: Path) -> None:
    fp32, int4 = build("fp32"), build("int4-rtn-b32")
    follow(deploy(fp32, device))
    follow(deploy(int4, device))
    flip_a_bit(root / "releases" / int4.id / "model.onnx.data")

    with pytest.raises(CorruptBundle) as error:
        follow(verify(device)).enforce()
    assert error.value.message == f"pi5: damaged releases: {int4.id[:12]}: model.onnx.data"
    assert error.value.hint is not None and "edgephi verify pi5 --repair" in error.value.hint
    assert pointer(root)["release"] == int4.id, "looking changes nothing"

    repaired = follow(verify(device, repair=True))
    assert (repaired.active, repaired.repaired) == (fp32.id, True)
    assert pointer(root)["release"] == fp32.id
    follow(verify(device)).enforce()

    events: list[Event] = []
    follow(deploy(int4, device), events)
    assert any("push 1 of " in text for text in steps(events))
    assert follow(verify(device)).active == int4.id


def test_a_damaged_release_is_not_activated_and_a_deploy_heals_it(device: Device, root: Path) -> None:
    fp32, int4 = build("fp32"), build("int4-rtn-b32")
    follow(deploy(int4, device))
    follow(deploy(fp32, device))
    flip_a_bit(root / "releases" / int4.id / "model.onnx.data")
    with pytest.raises(CorruptBundle, match=f"release {int4.id[:12]} is damaged, and stays inactive"):
        follow(activate(device, int4.id))
    assert pointer(root)["release"] == fp32.id

    events: list[Event] = []
    follow(deploy(int4, device), events)
    assert Warning_(f"pi5: damaged in release {int4.id[:12]}: model.onnx.data") in events
    assert any("push 1 of " in text for text in steps(events))
    assert follow(verify(device)).active == int4.id
    follow(verify(device)).enforce()


def test_a_small_file_is_damaged_in_one_release_only(device: Device, root: Path) -> None:
    fp32, int4 = build("fp32"), build("int4-rtn-b32")
    for bundle in (fp32, int4):
        follow(deploy(bundle, device))
    flip_a_bit(root / "releases" / int4.id / "tokenizer.json")
    assert [checked.release for checked in follow(verify(device)).damaged] == [int4.id]
    assert follow(verify(device, repair=True)).active == fp32.id
    events: list[Event] = []
    follow(deploy(int4, device), events)
    assert any("push 0 of " in event.text for event in events if isinstance(event, Step)), "its blob was whole"


def test_a_damaged_file_in_the_way_of_a_deploy_is_sent_afresh_by_it(device: Device, root: Path) -> None:
    fp32, int4 = build("fp32"), build("int4-rtn-b32")
    follow(deploy(fp32, device))
    sha256 = next(artifact.sha256 for artifact in int4.manifest.artifacts if artifact.path == "tokenizer.json")
    flip_a_bit(root / "blobs" / "sha256" / sha256)
    events: list[Event] = []
    follow(deploy(int4, device), events)
    assert any("tokenizer.json" in event.text for event in events if isinstance(event, Warning_))
    follow(verify(device)).enforce()
    assert follow(verify(device)).active == int4.id


def test_repairing_the_only_release_leaves_nothing_active(device: Device, root: Path) -> None:
    follow(deploy(build("int4-rtn-b32"), device))
    flip_a_bit(root / "releases" / build("int4-rtn-b32").id / "model.onnx")
    assert follow(verify(device, repair=True)).active is None
    with pytest.raises(ConfigError, match="no release called"):
        follow(activate(device, "phi3-nano-int4-rtn-b32"))


def test_prune_keeps_the_active_release_and_those_before_it(device: Device, root: Path) -> None:
    bundles = [build(name) for name in NAMES]
    for bundle in bundles:
        follow(deploy(bundle, device))
    planned = follow(prune(device, keep=1, dry_run=True))
    assert planned.removed == (bundles[0].id,)
    assert len(list((root / "releases").iterdir())) == 3
    pruned = follow(prune(device, keep=1))
    assert (pruned.removed, pruned.freed_bytes) == (planned.removed, planned.freed_bytes)
    assert set(pruned.kept) == {bundles[1].id, bundles[2].id} == {path.name for path in (root / "releases").iterdir()}
    # The files that the other two releases share with it stay.
    assert 0 < pruned.freed_bytes < bundles[0].manifest.size_bytes
    follow(verify(device)).enforce()
    assert device.ask(RollBack()).release == bundles[1].id
    follow(prune(device, keep=0))
    assert [path.name for path in (root / "releases").iterdir()] == [bundles[1].id]
    assert follow(prune(device, keep=0)).freed_bytes == 0


def test_the_second_of_two_pushers_is_told_who_the_first_one_is_and_waits(device: Device, root: Path) -> None:
    first = follow(device.hold([], CHUNK_BYTES))
    events: list[Event] = []
    told = threading.Event()

    def push() -> None:
        service = install(build("int4-rtn-b32"), device)
        while True:
            try:
                event = next(service)
            except StopIteration:
                return
            events.append(event)
            if "wait for" in getattr(event, "text", ""):
                told.set()

    thread = threading.Thread(target=push)
    thread.start()
    assert told.wait(60)
    assert not list((root / "incoming").glob("*"))
    first.release()
    thread.join(60)
    assert (root / "releases" / build("int4-rtn-b32").id).is_dir()
    (text,) = [text for text in steps(events) if "wait for" in text]
    assert text.startswith("pi5: wait for ") and ": a push since " in text


def test_a_pusher_that_dies_leaves_the_way_free(device: Device, root: Path, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, connect(target_over(server, root)) as other:
        follow(other.hold([], CHUNK_BYTES))
    follow(install(build("int4-rtn-b32"), device))
    assert (root / "releases" / build("int4-rtn-b32").id).is_dir()
