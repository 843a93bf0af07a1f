"""Places in registries, and manifests that a hostile registry may send."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import make
from toolkit.bundle import Bundle
from toolkit.bundle.registry import BlobSource, Place, parse_place
from toolkit.bundle.registry.layout import (
    ARTIFACT_TYPE,
    BLOCKS_LAYER,
    TITLE,
    Repository,
    blocks_layer,
    bundle_layers,
    file_layer,
    find_blocks_layer,
    image_manifest,
    is_loopback,
    is_signature,
    manifest_layer,
    read_image_manifest,
    signature_layers,
    with_mirrors,
)
from toolkit.bundle.store import MANIFEST_NAME
from toolkit.errors import ConfigError, CorruptBundle

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("oci://registry.example.com/models/phi3:v1", Place("registry.example.com", "models/phi3", "v1")),
        ("oci://localhost:5000/phi3", Place("localhost:5000", "phi3", "latest")),
        ("oci://[::1]:5000/a/b_c--d.e:V.1-x", Place("[::1]:5000", "a/b_c--d.e", "V.1-x")),
        (f"oci://ghcr.io/o/r@{DIGEST}", Place("ghcr.io", "o/r", "latest", DIGEST)),
        (f"oci://ghcr.io/o/r:v1@{DIGEST}", Place("ghcr.io", "o/r", "v1", DIGEST)),
    ],
)
def test_references(text: str, found: Place) -> None:
    assert parse_place(text) == found
    assert parse_place(str(found)).name == found.name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("oci://registry", "no place in a registry"),
        ("https://registry/x", "no place in a registry"),
        ("oci:///x", "is no host"),
        ("oci://user:pw@host/x", "credentials don't belong"),
        ("oci://host/Models", "'Models' is no repository"),
        ("oci://host/../x", "is no repository"),
        ("oci://host/a//b", "is no repository"),
        ("oci://host/a?x=1", "is no repository"),
        ("oci://ho st/a", "is no host"),
        ("oci://host/a:", "'' is no tag"),
        ("oci://host/a:-x", "is no tag"),
        ("oci://host/a@sha256:12", "is no digest"),
        (f"oci://host/{'a' * 255}", "is no repository"),
    ],
)
def test_what_is_no_reference(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_place(text)
    assert says in error.value.message
    assert "pw" not in error.value.message


def test_plain_http_is_for_this_machine_and_for_who_says_so() -> None:
    assert all(map(is_loopback, ("localhost", "localhost:5000", "127.0.0.1:1", "127.1.2.3", "[::1]:5000")))
    assert not any(map(is_loopback, ("127.0.0.1.example.com", "localhost.example.com:5000", "10.0.0.1", "128.0.0.1")))
    assert Repository.of("localhost:5000", "a", plain_http=False).url == "http://localhost:5000/v2/a"
    assert Repository.of("ghcr.io", "a/b", plain_http=False).url == "https://ghcr.io/v2/a/b"
    assert Repository.of("ghcr.io", "a/b", plain_http=True).url == "http://ghcr.io/v2/a/b"
    assert Repository.of("docker.io", "a/b", plain_http=False).url == "https://registry-1.docker.io/v2/a/b"


def test_mirrors_come_first_and_may_have_a_namespace() -> None:
    source = with_mirrors(BlobSource("ghcr.io", "o/r"), ["http://mirror.lan:5000", "https://harbor.lan/ghcr-proxy/"])
    assert [place.url for place in source.repositories()] == [
        "http://mirror.lan:5000/v2/o/r",
        "https://harbor.lan/v2/ghcr-proxy/o/r",
        "https://ghcr.io/v2/o/r",
    ]


@pytest.mark.parametrize(
    "url",
    [
        "mirror.lan",
        "ftp://mirror",
        "https://",
        "https://u:pw@mirror",
        "https://m/A",
        "https://m?x",
        "https://m/#f",
        "https://[x",
    ],
)
def test_what_is_no_mirror(url: str) -> None:
    with pytest.raises(ConfigError, match="is no mirror") as error:
        with_mirrors(BlobSource("ghcr.io", "o/r"), [url])
    assert "pw" not in error.value.message


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make(tmp_path / "bundle")


def layers_of(bundle: Bundle) -> list[Any]:
    signature = file_layer("signatures/anna.sig", "b" * 64, 10)
    files = bundle_layers(bundle.manifest, bundle.id, len(bundle.manifest_text), [signature])
    return [*files, blocks_layer(b'{"lists":[]}')]


def test_a_bundles_manifest_is_what_the_specification_says(bundle: Bundle) -> None:
    raw = image_manifest("nano", layers_of(bundle))
    assert raw == image_manifest("nano", layers_of(bundle))
    value = json.loads(raw)
    assert (value["schemaVersion"], value["artifactType"]) == (2, ARTIFACT_TYPE)
    assert value["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
        "data": "e30=",
    }
    first = value["layers"][0]
    assert (first["digest"], first["annotations"]) == (f"sha256:{bundle.id}", {TITLE: MANIFEST_NAME})
    titles = [layer["annotations"].get(TITLE) for layer in value["layers"]]
    assert titles == [MANIFEST_NAME, "signatures/anna.sig", *(a.path for a in bundle.manifest.artifacts), None]


def test_it_is_read_back(bundle: Bundle) -> None:
    layers = read_image_manifest(image_manifest("nano", layers_of(bundle)), "there")
    assert manifest_layer(layers, "there").sha256 == bundle.id
    (signature,) = signature_layers(layers, bundle.manifest, "there")
    assert signature.title == "signatures/anna.sig"
    assert find_blocks_layer(layers) == blocks_layer(b'{"lists":[]}')
    assert find_blocks_layer(layers[:-1]) is None, "as oras pushes it"


def changed(bundle: Bundle, **changes: Any) -> bytes:
    return json.dumps(json.loads(image_manifest("nano", layers_of(bundle))) | changes).encode()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "no manifest"),
        (b"[]", "no manifest"),
        (b"[" * 100_000, "no manifest"),
        (b'{"schemaVersion": 2}', "layers: Field required"),
        (b'{"schemaVersion": 2, "manifests": [], "layers": []}', "no edgephi bundle, but an image without a kind"),
        (b'{"schemaVersion": 2, "manifests": [{}]}', "no edgephi bundle, but an index of several manifests"),
        (b'{"layers": ' + b"9" * 60_000 + b"}", "no manifest"),
        (b'{"schemaVersion": 2, "artifactType": "x/y", "layers": []}', "no edgephi bundle, but x/y"),
    ],
)
def test_what_is_no_bundle(raw: bytes, says: str) -> None:
    with pytest.raises(CorruptBundle, match="there: ") as error:
        read_image_manifest(raw, "there")
    assert says in error.value.message


@pytest.mark.parametrize(
    "layer",
    [
        {"digest": "sha256:" + "g" * 64, "size": 1},
        {"digest": "sha512:" + "a" * 128, "size": 1},
        {"digest": DIGEST, "size": -1},
        {"digest": DIGEST, "size": 1.0},
        {"digest": DIGEST, "size": "1"},
        {"digest": DIGEST, "size": True},
        {"digest": DIGEST, "size": 1 << 60},
        {"digest": DIGEST, "size": 1, "annotations": {TITLE: 5}},
        {"size": 1},
        "layer",
    ],
)
def test_layers_that_are_none(bundle: Bundle, layer: Any) -> None:
    with pytest.raises(CorruptBundle, match="no manifest of an artifact"):
        read_image_manifest(changed(bundle, layers=[layer]), "there")


def test_two_layers_of_one_name_are_refused(bundle: Bundle) -> None:
    twice = [file_layer("a", "a" * 64, 1).model_dump(), file_layer("A", "b" * 64, 1).model_dump()]
    with pytest.raises(CorruptBundle, match="layers of one name: 'a'"):
        read_image_manifest(changed(bundle, layers=twice), "there")


@pytest.mark.parametrize("titles", ["each its own", "one for all"])
def test_more_layers_than_a_bundle_has_are_refused_at_once(bundle: Bundle, titles: str) -> None:
    layer = {"digest": DIGEST, "size": 1}
    layers = [layer | ({"annotations": {TITLE: f"{n}"}} if titles == "each its own" else {}) for n in range(43_000)]
    raw = changed(bundle, layers=layers)
    began = time.process_time()
    with pytest.raises(CorruptBundle) as error:
        read_image_manifest(raw, "there")
    assert error.value.message == "there: no edgephi bundle: 43000 layers, at most 10034 fit"
    assert time.process_time() - began < 2
    with pytest.raises(CorruptBundle, match=r"layers of one name|no layer is model\.onnx"):
        signature_layers(read_image_manifest(changed(bundle, layers=layers[:10_034]), "there"), bundle.manifest, "")
    assert time.process_time() - began < 4


def test_the_bundles_own_manifest_must_be_there_and_small() -> None:
    with pytest.raises(CorruptBundle, match="no layer is a manifest"):
        manifest_layer([], "there")
    with pytest.raises(CorruptBundle, match="of 1000000000 bytes"):
        manifest_layer([file_layer(MANIFEST_NAME, "a" * 64, 10**9)], "there")


@pytest.mark.parametrize("title", ["../../etc/passwd", "/etc/passwd", "other.bin", "sub/x.sig", "..sig", ""])
def test_layers_of_nothing_in_the_bundle_are_refused(bundle: Bundle, title: str) -> None:
    layers = [*layers_of(bundle), file_layer(title, "c" * 64, 5)]
    with pytest.raises(CorruptBundle, match="isn't in the bundle's manifest"):
        signature_layers(layers, bundle.manifest, "there")


def test_artifacts_that_are_missing_other_or_absurd_are_refused(bundle: Bundle) -> None:
    layers = layers_of(bundle)[:-1]
    with pytest.raises(CorruptBundle, match=f"no layer is {layers[-1].title}"):
        signature_layers(layers[:-1], bundle.manifest, "there")
    for update in ({"digest": DIGEST}, {"size": 1 << 39}):
        other = [*layers[:-1], layers[-1].model_copy(update=update)]
        with pytest.raises(CorruptBundle, match="isn't what the bundle's manifest lists"):
            signature_layers(other, bundle.manifest, "there")
    many = [file_layer(f"signatures/{number}.sig", "c" * 64, 5) for number in range(40)]
    with pytest.raises(CorruptBundle, match="more than 32 signatures"):
        signature_layers([*layers, *many], bundle.manifest, "there")
    with pytest.raises(CorruptBundle, match="is no signature"):
        signature_layers([*layers, file_layer("signatures/x.sig", "c" * 64, 10**8)], bundle.manifest, "there")


def test_a_manifest_that_calls_itself_a_list_of_blocks(bundle: Bundle) -> None:
    layers = layers_of(bundle)
    layers[0] = layers[0].model_copy(update={"mediaType": BLOCKS_LAYER})
    assert manifest_layer(layers, "there").sha256 == bundle.id
    assert len(signature_layers(layers, bundle.manifest, "there")) == 1


def test_signatures_by_name() -> None:
    assert all(map(is_signature, ("signatures/anna.sig", "signatures/0f_1-2.sig")))
    refused = (
        "anna.sig",
        "signatures/.sig",
        "signatures/a/b.sig",
        "other/x.sig",
        "signatures/../x.sig",
        "signatures/x",
    )
    assert not any(map(is_signature, refused))
