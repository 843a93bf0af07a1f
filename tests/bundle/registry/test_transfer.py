"""Bundles to a real registry and back: content that is sent once only, cuts, moved tags, hostile manifests."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.builds import follow
from tests.support.bundle_registries import layers_of, serving
from tests.support.registries import (
    MIB,
    CuttingRelay,
    LocalRegistry,
    Server,
    bundle_of,
    content,
    needs_registry,
    registry,
    reply,
)
from toolkit.bundle import Bundle, list_bundles, verify_bundle
from toolkit.bundle.registry import Place, client, parse_place
from toolkit.bundle.registry.layout import TITLE, file_layer
from toolkit.bundle.registry.transfer import pull_bundle, push_bundle, remote_bundle
from toolkit.bundle.store import MANIFEST_NAME, store_dir
from toolkit.errors import ConfigError, CorruptBundle, RegistryError
from toolkit.events import Event, Progress, Step

LARGE = content(9 * MIB + 7)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PAUSE_S", 0.01)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    files = {"model.onnx": b"graph", "model.onnx.data": LARGE, "sub/tokenizer.json": b"{}", "empty": b""}
    return bundle_of(tmp_path / "bundle", files)


@pytest.fixture
def place(there: LocalRegistry, request: pytest.FixtureRequest) -> Place:
    """A repository of the test's own."""
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    return parse_place(there.reference(f"models/{name}:v1"))


def steps(events: list[Event]) -> list[tuple[str, bool]]:
    return [(event.text, event.skipped) for event in events if isinstance(event, Step)]


@needs_registry
def test_there_and_back(there: LocalRegistry, place: Place, bundle: Bundle) -> None:
    events: list[Event] = []
    published = follow(push_bundle(bundle, place), events)
    assert steps(events) == [(f"{place}: push 5 of 5 files, 9.44 MB", False)]
    done = [event.done for event in events if isinstance(event, Progress) and event.label == "push"]
    assert done == sorted(done) and done[-1] == published.sent_bytes
    pulled = follow(pull_bundle(published.reference))
    assert pulled.path == store_dir() / bundle.id and pulled.id == bundle.id
    follow(verify_bundle(pulled))
    assert [found.id for found in list_bundles()] == [bundle.id]
    assert [path.name for path in store_dir().iterdir()] == [bundle.id]
    events = []
    follow(pull_bundle(place), events)
    assert steps(events) == [(f"nano-int4 ({bundle.id[:12]}) is here", True)]


@needs_registry
def test_what_is_there_is_not_sent_again(there: LocalRegistry, place: Place, bundle: Bundle, tmp_path: Path) -> None:
    follow(push_bundle(bundle, place))
    sent = len(there.requests("PUT")) + len(there.requests("PATCH"))
    events: list[Event] = []
    assert follow(push_bundle(bundle, place), events).sent_bytes == 0
    assert steps(events) == [(f"{place} is nano-int4", True)]
    assert len(there.requests("PUT")) + len(there.requests("PATCH")) == sent
    other = bundle_of(tmp_path / "other", {"model.onnx": b"graph", "model.onnx.data": LARGE, "new": b"new"})
    events = []
    published = follow(push_bundle(other, Place(place.host, place.repository, "v2")), events)
    assert published.sent_bytes == 3 + len(other.manifest_text)
    assert steps(events)[0][0].endswith(f"push 2 of 4 files, {published.sent_bytes} B")


@needs_registry
def test_signatures_travel_along_and_may_come_later(place: Place, bundle: Bundle, tmp_path: Path) -> None:
    follow(push_bundle(bundle, place))
    pulled = follow(pull_bundle(place))
    (bundle.path / "signatures").mkdir()
    (bundle.path / "signatures/anna.sig").write_bytes(b"signed by anna")
    events: list[Event] = []
    assert follow(push_bundle(bundle, place), events).sent_bytes == len("signed by anna")
    assert follow(pull_bundle(place)).path == pulled.path
    assert (pulled.path / "signatures/anna.sig").read_bytes() == b"signed by anna"
    seen = follow(remote_bundle(place))
    assert seen.id == bundle.id
    files = sorted(path.relative_to(seen.path).as_posix() for path in seen.path.rglob("*") if path.is_file())
    assert files == ["manifest.json", "signatures/anna.sig"]


@needs_registry
@pytest.mark.parametrize("cut", [40_000, 3 * MIB, 7 * MIB + 5])
def test_links_that_break_cost_what_was_under_way(
    there: LocalRegistry, place: Place, bundle: Bundle, tmp_path: Path, cut: int
) -> None:
    relay = CuttingRelay(there.port, [cut])
    cutting = Place(relay.host, place.repository, place.tag)
    follow(push_bundle(bundle, cutting))
    assert relay.cuts_left == 0
    relay.close()
    relay = CuttingRelay(there.port, [cut])
    pulled = follow(pull_bundle(Place(relay.host, place.repository, place.tag), into=tmp_path / "pulled"))
    relay.close()
    assert relay.cuts_left == 0
    follow(verify_bundle(pulled))
    (large,) = [artifact.sha256 for artifact in bundle.manifest.artifacts if artifact.path == "model.onnx.data"]
    assert there.blob(large).read_bytes() == LARGE


@needs_registry
def test_a_pull_that_was_ended_goes_on(there: LocalRegistry, place: Place, bundle: Bundle, tmp_path: Path) -> None:
    follow(push_bundle(bundle, place))
    service = pull_bundle(place, into=tmp_path / "pulled")
    for event in service:
        if isinstance(event, Progress) and event.done > 5 * MIB:
            break
    with pytest.raises(ConfigError, match=f"this process pulls {place}"):
        follow(pull_bundle(place, into=tmp_path / "pulled"))
    service.close()
    assert not (tmp_path / "pulled").exists()
    begun = there.log()
    follow(verify_bundle(follow(pull_bundle(place, into=tmp_path / "pulled"))))
    rest = [line for line in there.log().removeprefix(begun).splitlines() if '" 206 ' in line]
    assert len(rest) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if "pull" in path.name) == ["pulled"]


@needs_registry
def test_a_tag_that_moves(there: LocalRegistry, place: Place, bundle: Bundle, tmp_path: Path) -> None:
    first = follow(push_bundle(bundle, place))
    second = bundle_of(tmp_path / "second", {"model.onnx": b"better"}, name="nano-better")
    follow(push_bundle(second, place))
    assert follow(remote_bundle(place)).id == second.id
    assert follow(remote_bundle(first.reference)).id == bundle.id
    assert follow(pull_bundle(first.reference, into=tmp_path / "pulled")).id == bundle.id


@needs_registry
def test_a_file_that_changed_is_not_published(there: LocalRegistry, place: Place, bundle: Bundle) -> None:
    for name in ("model.onnx", "model.onnx.data"):
        path = bundle.path / name
        whole = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(whole[:-1] + b"?")
        with pytest.raises(CorruptBundle, match=f"{name}: content changed"):
            follow(push_bundle(bundle, place))
        path.write_bytes(whole[:-1])
        with pytest.raises(CorruptBundle, match=name):
            follow(push_bundle(bundle, place))
        path.write_bytes(whole)
    with pytest.raises(RegistryError, match="no such"):
        follow(remote_bundle(place))
    follow(push_bundle(bundle, place))


@needs_registry
def test_what_is_not_there(there: LocalRegistry, place: Place, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no such repository") as error:
        follow(pull_bundle(place))
    assert "edgephi bundle push" in str(error.value.hint)
    follow(push_bundle(bundle, place))
    for name in ({"tag": "v9"}, {"digest": "sha256:" + "a" * 64}):
        with pytest.raises(RegistryError, match="no such"):
            follow(pull_bundle(Place(place.host, place.repository, **name)))  # type: ignore[arg-type]
    # As if the registry's garbage collector had removed a blob in use.
    there.blob(next(a.sha256 for a in bundle.manifest.artifacts if a.path == "model.onnx")).unlink()
    with pytest.raises(RegistryError, match=r"hasn't model\.onnx"):
        follow(pull_bundle(place, into=tmp_path / "pulled"))
    assert not (tmp_path / "pulled").exists()


@needs_registry
def test_a_registry_that_dies_in_mid_push(bundle: Bundle, tmp_path: Path) -> None:
    with registry(tmp_path / "registry") as dying:
        service = push_bundle(bundle, parse_place(dying.reference()))
        with pytest.raises(RegistryError, match="no answer: Connection refused"):
            for event in service:
                if isinstance(event, Progress) and event.done > 4 * MIB:
                    dying.kill()


def test_what_cannot_be_pushed_or_pulled_to(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="settled already"):
        follow(push_bundle(bundle, Place("localhost:1", "x", digest="sha256:" + "a" * 64)))
    with serving(bundle, layers_of(bundle)) as server, pytest.raises(ConfigError, match="exists already"):
        follow(pull_bundle(parse_place(f"oci://{server.host}/x"), into=tmp_path))


def test_a_list_of_files_that_no_registry_takes(tmp_path: Path) -> None:
    """The bundle's own manifest is short enough; a registry's has more to each file."""
    small = bundle_of(tmp_path / "small", {"f": b""})
    (one,) = small.manifest.artifacts
    many = tuple(one.model_copy(update={"path": f"{number:05}{'x' * 240}"}) for number in range(10_000))
    bundle = replace(small, manifest=small.manifest.model_copy(update={"artifacts": many}))
    with Server(lambda handler: reply(handler, 404)) as server:
        with pytest.raises(
            ConfigError, match=r"^nano-int4: a list of files of \d+ bytes; no registry takes it$"
        ) as error:
            follow(push_bundle(bundle, parse_place(f"oci://{server.host}/x")))
        assert server.asked == [] and "shorter names" in str(error.value.hint)


# --- registries that lie --------------------------------------------------------------------------------------------


def test_a_manifest_that_leads_outside_writes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    evil = bundle.manifest_text.replace('"model.onnx"', '"../../evil"').encode()
    digest = hashlib.sha256(evil).hexdigest()
    layers = [file_layer(MANIFEST_NAME, digest, len(evil)).model_dump(), *layers_of(bundle)[1:]]
    with serving(bundle, layers, **{digest: evil}) as server:
        reference = parse_place(f"oci://{server.host}/x")
        for service in (pull_bundle(reference, into=tmp_path / "a/b/c"), remote_bundle(reference)):
            with pytest.raises(CorruptBundle, match="unsafe path"):
                follow(service)
        assert not any("blobs" in path and digest not in path for _, path, _ in server.asked)
    assert not list(tmp_path.rglob("*evil*"))


def test_a_layer_that_leads_outside_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    extra = {"digest": f"sha256:{bundle.id}", "size": 3, "annotations": {TITLE: "../../evil"}}
    with (
        serving(bundle, [*layers_of(bundle), extra]) as server,
        pytest.raises(CorruptBundle, match=r"'\.\./\.\./evil' isn't in the bundle's manifest"),
    ):
        follow(pull_bundle(parse_place(f"oci://{server.host}/x"), into=tmp_path / "pulled"))


def test_absurd_sizes_are_refused_before_they_are_fetched(bundle: Bundle, tmp_path: Path) -> None:
    huge = json.loads(bundle.manifest_text)
    huge["artifacts"][0]["size_bytes"] = 1 << 39
    text = json.dumps(huge).encode()
    digest = hashlib.sha256(text).hexdigest()
    layers = layers_of(bundle)
    layers[0] = file_layer(MANIFEST_NAME, digest, len(text)).model_dump()
    layers[1]["size"] = 1 << 39
    with (
        serving(bundle, layers, **{digest: text}) as server,
        pytest.raises(ConfigError, match=r"550 GB to pull, "),
    ):
        follow(pull_bundle(parse_place(f"oci://{server.host}/x"), into=tmp_path / "pulled"))


def test_files_that_cannot_stand_beside_each_other(bundle: Bundle, tmp_path: Path) -> None:
    text = bundle.manifest_text.replace('"sub/tokenizer.json"', '"model.onnx/tokenizer.json"').encode()
    digest = hashlib.sha256(text).hexdigest()
    layers = layers_of(bundle)
    layers[0] = file_layer(MANIFEST_NAME, digest, len(text)).model_dump()
    layers[3]["annotations"] = {TITLE: "model.onnx/tokenizer.json"}
    with (
        serving(bundle, layers, **{digest: text}) as server,
        pytest.raises(CorruptBundle, match=r"a file and a folder: 'model\.onnx'"),
    ):
        follow(pull_bundle(parse_place(f"oci://{server.host}/x"), into=tmp_path / "pulled"))


def test_two_at_once_into_one_store(bundle: Bundle) -> None:
    with serving(bundle, layers_of(bundle)) as server:
        reference = parse_place(f"oci://{server.host}/x")
        ended: list[object] = []

        def pull() -> None:
            try:
                ended.append(follow(pull_bundle(reference)).id)
            except ConfigError as exc:
                ended.append(exc.message)

        threads = [threading.Thread(target=pull) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bundle.id in ended and set(ended) <= {bundle.id, f"this process pulls {reference}"}
    (found,) = list_bundles()
    follow(verify_bundle(found))
