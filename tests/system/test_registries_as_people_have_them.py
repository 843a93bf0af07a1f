"""A real registry with TLS of a private authority, and tokens: from its own origin as in Harbor, Quay and GitHub, from
another port as in GitLab, from another host as in Docker Hub. By host and device, over kept connections and others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.support.builds import follow
from tests.support.commands import edgephi
from tests.support.devices import device_at
from tests.support.registries import (
    MIB,
    PASSWORD,
    LocalRegistry,
    Server,
    TlsFiles,
    bundle_of,
    content,
    docker_login,
    make_tls,
    needs_registry,
    registry,
    reply,
)
from tests.support.token_servers import Front, TokenServer, Tunnels
from toolkit.agent.requests import Install, Verify
from toolkit.bundle import Bundle, verify_bundle
from toolkit.bundle.registry import BlobSource, Place
from toolkit.bundle.registry.token_servers import settings_file
from toolkit.bundle.registry.transfer import pull_bundle, push_bundle, remote_bundle
from toolkit.deploy.pull import pull
from toolkit.errors import RegistryError

NAME = "closed/nano"
WHERE = ["own origin", "own origin that closes", "another port", "another host"]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bundle_of(tmp_path / "bundle", {"model.onnx": b"graph", "model.onnx.data": content(9 * MIB + 7), "c": b"{}"})


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, tls: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every name is this machine, for host and device, by a proxy as companies have them."""
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.authority))
    with Tunnels() as proxy:
        monkeypatch.setenv("https_proxy", f"http://{proxy.host}")
        yield


@contextmanager
def served(where: str, folder: Path, tls: TlsFiles) -> Iterator[tuple[str, TokenServer, LocalRegistry]]:
    """Run a registry, and its server of tokens there; gives its host and port, and both."""
    if where.startswith("own origin"):
        front = Front(folder / "keys", tls, "registry.test", keeps=where == "own origin")
        with front, registry(folder / "registry", auth=front.auth) as running:
            front.behind = running.port
            yield front.name, front, running
        return
    tokens = TokenServer(folder / "keys", tls, "registry.test" if where == "another port" else "auth.test")
    with tokens, registry(folder / "registry", auth=tokens.auth, tls=tls) as running:
        host = f"registry.test:{running.port}"
        if where == "another host":
            settings_file().parent.mkdir(parents=True)
            settings_file().write_text(f'["{host}"]\ntoken_server = "{tokens.name}"\n')
        yield host, tokens, running


@needs_registry
@pytest.mark.parametrize("where", WHERE)
def test_push_and_pull_by_host_and_device(where: str, bundle: Bundle, tls: TlsFiles, tmp_path: Path) -> None:
    with served(where, tmp_path, tls) as (host, tokens, running):
        place = Place(host, NAME, "v1")
        docker_login(tmp_path / "docker", host)
        published = follow(push_bundle(bundle, place))
        follow(verify_bundle(follow(pull_bundle(published.reference, into=tmp_path / "pulled"))))
        remote = follow(remote_bundle(place))
        assert remote.id == bundle.id and not remote.is_here
        with device_at(tmp_path / "device") as device:
            came = follow(pull(device, remote.manifest.artifacts, BlobSource(host, NAME)))
            assert came == bundle.manifest.size_bytes
            device.ask(Install(release=remote.id, manifest=remote.manifest_text))
            assert [list(entry.damaged) for entry in device.ask(Verify()).releases] == [[]]
        assert any(path.startswith("/token") for _, path, _ in tokens.asked)
        assert PASSWORD not in running.log()
        kept = b"".join(path.read_bytes() for path in (tmp_path / "device").rglob("*") if path.is_file())
        assert PASSWORD.encode() not in kept and b"Bearer" not in kept


@needs_registry
def test_commands(bundle: Bundle, tls: TlsFiles, tmp_path: Path) -> None:
    with served("own origin", tmp_path, tls) as (host, _, running):
        docker_login(tmp_path / "docker", host)
        reference = f"oci://{host}/{NAME}:v1"
        done = edgephi("bundle", "push", str(bundle.path), reference)
        assert done.returncode == 0, done.stderr
        done = edgephi("bundle", "pull", reference, "--into", str(tmp_path / "pulled"))
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "pulled/model.onnx.data").read_bytes() == (bundle.path / "model.onnx.data").read_bytes()
        (tmp_path / "docker/config.json").unlink()
        done = edgephi("bundle", "pull", reference, "--into", str(tmp_path / "other"))
        assert done.returncode == 8
        assert f"{host}/{NAME}: nobody without a password may pull from it (401: authentication" in flat(done.stderr)
        assert running.process.poll() is None


@needs_registry
def test_a_server_of_tokens_that_nobody_named(bundle: Bundle, tls: TlsFiles, tmp_path: Path) -> None:
    with served("another host", tmp_path, tls) as (host, tokens, _):
        settings = settings_file()
        text = settings.read_text()
        settings.unlink()
        docker_login(tmp_path / "docker", host)
        done = edgephi("bundle", "push", str(bundle.path), f"oci://{host}/{NAME}:v1")
        assert done.returncode == 8 and tokens.asked == []
        said = flat(done.stderr)
        assert f"error: {host}: sends us to {tokens.name} for a token, which isn't its own host" in said
        assert f'["{host}"] and, in the next line, token_server = "{tokens.name}"' in said
        with device_at(tmp_path / "device") as device, pytest.raises(RegistryError) as error:
            follow(pull(device, bundle.manifest.artifacts, BlobSource(host, NAME)))
        assert "which isn't its own host (if its password may go there, " in error.value.message and tokens.asked == []
        settings.write_text(text)
        done = edgephi("bundle", "push", str(bundle.path), f"oci://{host}/{NAME}:v1")
        assert done.returncode == 0, done.stderr


@needs_registry
def test_an_authority_that_nobody_named(
    bundle: Bundle, tls: TlsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served("another port", tmp_path, tls) as (host, tokens, _):
        docker_login(tmp_path / "docker", host)
        monkeypatch.delenv("SSL_CERT_FILE")
        done = edgephi("bundle", "push", str(bundle.path), f"oci://{host}/{NAME}:v1")
        assert done.returncode == 8 and tokens.asked == []
        assert f"error: {host}: its certificate isn't trusted: " in flat(done.stderr)
        assert "SSL_CERT_FILE names a file with the certificates to trust" in flat(done.stderr)
        with device_at(tmp_path / "device") as device, pytest.raises(RegistryError, match="isn't trusted here"):
            follow(pull(device, bundle.manifest.artifacts, BlobSource(host, NAME)))


@needs_registry
def test_a_deploy_after_somebody_changed_the_cache(bundle: Bundle, tls: TlsFiles, tmp_path: Path) -> None:
    with served("own origin", tmp_path, tls) as (host, _, _):
        docker_login(tmp_path / "docker", host)
        published = follow(push_bundle(bundle, Place(host, NAME, "v1")))
        kept = follow(remote_bundle(published.reference)).path / "manifest.json"
        changed = json.loads(kept.read_bytes()) | {"context_tokens": 7}
        kept.chmod(0o644)
        kept.write_text(json.dumps(changed))
        remote = follow(remote_bundle(published.reference))
        assert remote.id == bundle.id and json.loads(remote.manifest_bytes)["context_tokens"] == 512
        with device_at(tmp_path / "device") as device:
            follow(pull(device, remote.manifest.artifacts, BlobSource(host, NAME)))
            device.ask(Install(release=bundle.id, manifest=remote.manifest_text))
            assert [entry.release for entry in device.ask(Verify()).releases] == [bundle.id]


DEEP = b"[" * 60_000
NAMED: dict[str, tuple[int, bytes, dict[str, str], int, str]] = {
    "a deep error": (404, DEEP, {}, 8, "m/phi3:v1: no such repository or tag"),
    "a deep error of a busy one": (418, DEEP, {}, 8, "m/phi3: GET was answered with 418: I'm a Teapot"),
    "a deep manifest": (200, DEEP, {}, 6, "m/phi3:v1: no manifest of an artifact: nested too deep"),
    "an index": (200, b'{"manifests": []}', {}, 6, "m/phi3:v1: no edgephi bundle, but an index of several manifests"),
    "a redirect to no address": (307, b"", {"Location": "http://[::1/"}, 8, "'http://[::1/': neither http nor https"),
    "a realm that is no address": (
        401,
        b"",
        {"WWW_Authenticate": 'Bearer realm="http://[::1/"'},
        8,
        "names no server of tokens that can be asked: 'http://[::1/': neither http nor https",
    ),
    "a length that is a lie": (200, b"{}", {"Content_Length": "9" * 30}, 8, "no answer: IncompleteRead(2 bytes read"),
    "too long a manifest": (200, b" " * (4 * MIB + 1), {}, 8, "/manifests/v1: an answer of more than 4194304 bytes"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_a_registry_says_is_no_bug_of_ours(name: str) -> None:
    status, body, headers, code, says = NAMED[name]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, status, body, **headers)
        handler.close_connection = True

    with Server(answer) as there:
        done = edgephi("bundle", "pull", f"oci://{there.host}/m/phi3:v1")
    assert (done.returncode, says in flat(done.stderr)) == (code, True), done.stderr


def flat(text: str) -> str:
    return " ".join(text.split())
