"""Copies on this machine whose name is a hash: damaged, exchanged and added to between two commands."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.builds import follow
from tests.support.bundle_registries import layers_of, serving
from tests.support.registries import MIB, bundle_of, content
from toolkit.bundle import Bundle, verify_bundle
from toolkit.bundle.registry import Place, parse_place
from toolkit.bundle.registry.layout import file_layer
from toolkit.bundle.registry.transfer import pull_bundle, remote_bundle
from toolkit.bundle.signatures import read_signatures
from toolkit.bundle.store import MANIFEST_NAME
from toolkit.events import Event, Progress, Step, Warning_


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    files = {"model.onnx": b"graph", "model.onnx.data": content(9 * MIB + 7), "sub/tokenizer.json": b"{}", "empty": b""}
    return bundle_of(tmp_path / "bundle", files)


def steps(events: list[Event]) -> list[tuple[str, bool]]:
    return [(event.text, event.skipped) for event in events if isinstance(event, Step)]


def warnings(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Warning_)]


def change(path: Path, old: bytes, new: bytes) -> None:
    raw = path.read_bytes()
    assert old in raw
    path.chmod(0o644)
    path.write_bytes(raw.replace(old, new))


def as_edited(folder: Path) -> list[str]:
    change(folder / MANIFEST_NAME, b'"context_tokens":512', b'"context_tokens":513')
    return [MANIFEST_NAME]


def as_of_another_bundle(folder: Path) -> list[str]:
    other = bundle_of(folder.parent / "other", {"model.onnx": b"other"})
    (folder / MANIFEST_NAME).unlink()
    (folder / MANIFEST_NAME).symlink_to(other.path / MANIFEST_NAME)
    return [MANIFEST_NAME]


def as_signed_by_nobody(folder: Path) -> list[str]:
    change(folder / "signatures/anna.sig", b"anna", b"eve!")
    (folder / "signatures/eve.sig").write_bytes(b"signed by eve")
    return ["signatures/anna.sig", "signatures/eve.sig"]


def as_with_files(folder: Path) -> list[str]:
    (folder / "model.onnx").write_bytes(b"other")
    return ["model.onnx"]


@pytest.mark.parametrize("damage", [as_edited, as_of_another_bundle, as_signed_by_nobody, as_with_files])
@pytest.mark.parametrize("name", ["tag", "digest"])
def test_a_kept_manifest_counts_only_as_the_one_that_the_registry_has(
    bundle: Bundle, damage: Callable[[Path], list[str]], name: str
) -> None:
    signature = b"signed by anna"
    digest = hashlib.sha256(signature).hexdigest()
    layers = [*layers_of(bundle), file_layer("signatures/anna.sig", digest, len(signature)).model_dump()]
    with serving(bundle, layers, **{digest: signature}) as server:
        place = parse_place(f"oci://{server.host}/x")
        kept = follow(remote_bundle(place)).path
        place = Place(place.host, place.repository, digest=f"sha256:{kept.name}") if name == "digest" else place
        changed = damage(kept)
        events: list[Event] = []
        found = follow(remote_bundle(place), events)
        assert warnings(events) == [f"{kept}: {', '.join(changed)}: not what the registry has, fetched again"]
        again: list[Event] = []
        follow(remote_bundle(place), again)
    assert (found.id, found.manifest) == (bundle.id, bundle.manifest)
    assert hashlib.sha256(found.manifest_bytes).hexdigest() == bundle.id and not found.is_here
    assert read_signatures(found) == {"anna.sig": "signed by anna"}
    assert warnings(again) == []


def test_a_stored_bundle_that_changed_is_pulled_again_and_only_what_changed(bundle: Bundle) -> None:
    with serving(bundle, layers_of(bundle)) as server:
        place = parse_place(f"oci://{server.host}/x")
        stored = follow(pull_bundle(place)).path
        (stored / "signatures").mkdir()
        (stored / "signatures/mine.sig").write_bytes(b"signed here")
        change(stored / "model.onnx", b"graph", b"grapf")
        (stored / "empty").unlink()
        as_edited(stored)
        asked, events = len(server.asked), list[Event]()
        found = follow(pull_bundle(place), events)
        came = [path.rpartition(":")[2] for _, path, _ in server.asked[asked:] if "/blobs/" in path]
    assert warnings(events) == [f"{stored}: model.onnx, empty, manifest.json: changed or missing, pulled again"]
    assert steps(events) == [("pull nano-int4: 2 of 4 files, 5 B", False)]
    small = {a.sha256 for a in bundle.manifest.artifacts if a.path in ("model.onnx", "empty")}
    assert set(came) == {bundle.id} | {sha256 for sha256 in small if sha256 != hashlib.sha256().hexdigest()}
    assert found.id == bundle.id
    follow(verify_bundle(found))
    assert (stored / "signatures/mine.sig").read_bytes() == b"signed here"


def test_what_an_ended_pull_left_is_hashed_before_it_counts(bundle: Bundle, tmp_path: Path) -> None:
    into = tmp_path / "pulled"
    with serving(bundle, layers_of(bundle)) as server:
        place = parse_place(f"oci://{server.host}/x")
        service = pull_bundle(place, into=into)
        for event in service:
            if isinstance(event, Progress) and event.label == "pull" and event.done > 5 * MIB:
                break
        service.close()
        (left,) = tmp_path.glob(".pulled-*.pull")
        change(left / "model.onnx", b"graph", b"grapf")
        follow(verify_bundle(follow(pull_bundle(place, into=into))))
