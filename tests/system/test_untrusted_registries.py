"""Whatever a registry, its server of tokens or a file of credentials says: errors in words come out, nothing else."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tests.support.builds import follow
from tests.support.bundle_registries import layers_of
from tests.support.bundles import make
from tests.support.hostile_http import Scripted, answers
from tests.support.untrusted_inputs import held, lines, raw
from toolkit.bundle import Bundle
from toolkit.bundle.blocks import keep_block_lists
from toolkit.bundle.registry import Place, Registry, client
from toolkit.bundle.registry.auth import authorize, parse_challenges
from toolkit.bundle.registry.credentials import Credential, find_credential
from toolkit.bundle.registry.http import Web
from toolkit.bundle.registry.layout import (
    Repository,
    file_layer,
    image_manifest,
    manifest_layer,
    read_image_manifest,
    signature_layers,
)
from toolkit.bundle.registry.token_servers import check_realm, settings_file
from toolkit.bundle.registry.transfer import remote_bundle
from toolkit.errors import RegistryError, ToolkitError
from toolkit.untrusted import visible

pytestmark = pytest.mark.fuzz

SMALL = file_layer("model.onnx", "a" * 64, 5)
LARGE = file_layer("model.onnx.data", "b" * 64, client.CHUNK_BYTES + 5)
DOCUMENT = json.loads(image_manifest("nano", [SMALL, LARGE]))
ERRORS = {"errors": [{"code": "DENIED", "message": "no"}]}


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setattr(client, "_PAUSE_S", 0.0)
    monkeypatch.setattr(client, "_LONGEST_PAUSE_S", 0.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with Scripted() as running:
        yield running


Operation = Callable[[Registry, Path], Any]
OPERATIONS: dict[str, Operation] = {
    "has_blob": lambda registry, _: registry.has_blob(SMALL),
    "authorization": lambda registry, _: registry.authorization(SMALL),
    "manifest": lambda registry, _: registry.manifest("v1"),
    "has_manifest": lambda registry, _: registry.has_manifest("v1", SMALL.digest),
    "put_manifest": lambda registry, _: registry.put_manifest("v1", b"{}"),
    "small_blob": lambda registry, _: registry.small_blob(SMALL, 100),
    "download": lambda registry, part: list(registry.download(SMALL, part)),
    "upload of a small file": lambda registry, _: list(registry.upload(SMALL, io.BytesIO(b"graph"))),
    "upload in steps": lambda registry, _: list(registry.upload(LARGE, io.BytesIO(bytes(LARGE.size)))),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@given(script=st.lists(answers(ERRORS), min_size=1, max_size=4))
def test_every_operation(server: Scripted, operation: str, script: list[bytes], tmp_path: Path) -> None:
    server.begin(script)
    part = tmp_path / "part"
    part.unlink(missing_ok=True)
    repository = Repository.of(server.host, "models/nano", plain_http=False)
    with Registry(repository, write=True) as registry:
        result = held(lambda: OPERATIONS[operation](registry, part))
    if isinstance(result, RegistryError):
        assert visible(result.message) == result.message and len(result.message) < 1000
    assert server.asked < 100


@given(script=st.lists(answers(DOCUMENT), min_size=1, max_size=3))
def test_a_bundle(server: Scripted, script: list[bytes]) -> None:
    server.begin(script)
    held(lambda: follow(remote_bundle(Place(server.host, "models/nano"))))


@given(given_bytes=raw(DOCUMENT))
def test_image_manifests(given_bytes: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = made(tmp_path_factory)

    def read() -> None:
        layers = read_image_manifest(given_bytes, "there")
        manifest_layer(layers, "there")
        signature_layers(layers, bundle.manifest, "there")

    held(read)


@given(data=st.data())
def test_image_manifests_of_a_bundle(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = made(tmp_path_factory)
    changed = data.draw(raw(DOCUMENT | {"layers": layers_of(bundle)}))

    def read() -> None:
        layers = read_image_manifest(changed, "there")
        manifest_layer(layers, "there")
        signature_layers(layers, bundle.manifest, "there")

    held(read)


_made: list[Bundle] = []


def made(factory: pytest.TempPathFactory) -> Bundle:
    if not _made:
        _made.append(make(factory.mktemp("bundle")))
    return _made[0]


@given(body=raw({"token": "abc", "access_token": "abc", "expires_in": 300, "issued_at": "2024-01-01T00:00:00Z"}))
def test_tokens(server: Scripted, body: bytes) -> None:
    server.begin([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)])
    repository = Repository.of(server.host, "models/nano", plain_http=False)
    challenges = parse_challenges(f'Bearer realm="http://{server.host}/token",service="x"')
    given_token = held(lambda: authorize(Web(), repository, "pull", challenges, Credential("anna", "s3cret")))
    if not isinstance(given_token, ToolkitError):
        assert given_token.isascii() and given_token.isprintable() and given_token.startswith("Bearer ")


@given(header=lines('Bearer realm="https://auth.example.com/token",service="x", Basic realm="a\\"b"'))
def test_challenges(header: bytes) -> None:
    for challenge in parse_challenges(header.decode("latin-1")):
        held(lambda realm=challenge.realm: check_realm(realm, Repository.of("registry.test", "x", plain_http=False)))


@given(realm=st.text(max_size=60) | st.builds(lambda host, rest: f"https://{host}/{rest}", st.text(), st.text()))
def test_realms(realm: str) -> None:
    refused = held(lambda: check_realm(realm, Repository.of("registry.test", "x", plain_http=True)))
    if isinstance(refused, ToolkitError):
        assert visible(refused.message) == refused.message


@given(text=raw({"auths": {"registry.test": {"auth": "YTpi", "identitytoken": "x"}}, "credHelpers": {"b": "none"}}))
def test_files_of_credentials(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir(exist_ok=True)
    (tmp_path / "docker/config.json").write_bytes(text)
    found = held(lambda: find_credential("registry.test", "models/nano"))
    if isinstance(found, Credential):
        held(lambda: found.basic)


@given(text=lines(b'["registry.test"]\ntoken_server = "auth.test:443"'))
def test_files_of_settings(text: bytes) -> None:
    settings_file().parent.mkdir(parents=True, exist_ok=True)
    settings_file().write_bytes(text)
    held(lambda: check_realm("https://auth.test/x", Repository.of("registry.test", "x", plain_http=False)))


@given(text=raw({"a" * 64: [[1000, "b" * 64], [4000, "c" * 64]]}))
def test_lists_of_blocks(text: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    keep_block_lists(text, made(tmp_path_factory).manifest)
