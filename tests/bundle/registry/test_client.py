"""The client against a real registry with passwords, tokens and TLS, and against servers that misbehave."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.support.registries import (
    MIB,
    PASSWORD,
    EndlessServer,
    LocalRegistry,
    Server,
    content,
    docker_login,
    htpasswd,
    make_tls,
    needs_registry,
    registry,
    reply,
)
from tests.support.token_servers import TokenServer, Tunnels
from toolkit.bundle.registry import Registry, Unreachable, client
from toolkit.bundle.registry.layout import Layer, Repository, file_layer
from toolkit.errors import RegistryError

BYTES = content(3 * MIB + 11)


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "_PAUSE_S", 0.01)


def layer_of(content: bytes, name: str = "model.onnx.data") -> Layer:
    return file_layer(name, hashlib.sha256(content).hexdigest(), len(content))


LAYER = layer_of(BYTES)


def at(host: str, path: str = "models/nano", *, write: bool = False, plain_http: bool = False) -> Registry:
    return Registry(Repository.of(host, path, plain_http=plain_http), write=write)


def put(there: Registry, content: bytes = BYTES) -> None:
    assert list(there.upload(layer_of(content), io.BytesIO(content)))[-1] == len(content)


def get(there: Registry, part: Path, layer: Layer = LAYER) -> bytes:
    for _ in there.download(layer, part):
        pass
    return part.read_bytes()


# --- real registries ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@needs_registry
def test_blobs_come_and_go(open_registry: LocalRegistry, tmp_path: Path) -> None:
    with at(open_registry.host, write=True) as there:
        assert not there.has_blob(LAYER)
        put(there)
        put(there, b"")
        assert there.has_blob(LAYER)
        assert not there.has_blob(LAYER.model_copy(update={"size": 5}))
        assert get(there, tmp_path / "part") == BYTES
        assert get(there, tmp_path / "empty", layer_of(b"")) == b""
        assert there.small_blob(LAYER, 4 * MIB) == BYTES


@needs_registry
def test_passwords(tmp_path: Path) -> None:
    with registry(tmp_path / "registry", auth=htpasswd(tmp_path)) as running:
        with pytest.raises(RegistryError) as error:
            put(at(running.host, write=True))
        assert "nobody without a password may push to it (401" in error.value.message
        assert f"docker login {running.host}" in str(error.value.hint)
        assert error.value.exit_code == 8
        docker_login(tmp_path / "docker", running.host, auth="YW5uYTp3cm9uZw==")
        with pytest.raises(RegistryError, match="'anna' may pull from it") as error:
            at(running.host).has_blob(LAYER)
        assert "wrong" not in str(error.value)
        docker_login(tmp_path / "docker", running.host)
        put(at(running.host, write=True))
        assert get(at(running.host), tmp_path / "part") == BYTES
        assert PASSWORD not in running.log()


@needs_registry
def test_tokens(tmp_path: Path) -> None:
    with TokenServer(tmp_path / "keys") as tokens, registry(tmp_path / "registry", auth=tokens.auth) as running:
        with pytest.raises(RegistryError, match="nobody without a password may push"):
            put(at(running.host, "open/nano", write=True))
        docker_login(tmp_path / "docker", running.host)
        put(at(running.host, "open/nano", write=True))
        put(at(running.host, "closed/nano", write=True))
        docker_login(tmp_path / "docker", running.host, identitytoken="refresh")
        assert get(at(running.host, "closed/nano"), tmp_path / "closed") == BYTES
        docker_login(tmp_path / "docker", running.host, auth="YW5uYTp3cm9uZw==")
        with pytest.raises(RegistryError, match="'anna' may pull from it"):
            at(running.host, "closed/nano").has_blob(LAYER)
        (tmp_path / "docker/config.json").unlink()
        # For public repositories everybody gets a token.
        assert get(at(running.host, "open/nano"), tmp_path / "open") == BYTES
        with pytest.raises(RegistryError, match="nobody without a password may pull"):
            at(running.host, "closed/nano").has_blob(LAYER)
        given = at(running.host, "open/nano").authorization(LAYER)
        assert given is not None and given.startswith("Bearer ey")
        assert all(path.startswith("/token") for _, path, _ in tokens.asked)
        assert "refresh" not in "".join(path for _, path, _ in tokens.asked)


@needs_registry
def test_tls_with_an_authority_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_tls(tmp_path / "tls")
    resolve = socket.getaddrinfo

    def resolved(host: Any, *rest: Any, **named: Any) -> Any:
        return resolve("127.0.0.1" if host == "registry.test" else host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with registry(tmp_path / "registry", tls=files) as running:
        host = f"registry.test:{running.port}"
        with pytest.raises(RegistryError, match="its certificate isn't trusted") as error:
            at(host).has_blob(LAYER)
        assert "SSL_CERT_FILE" in str(error.value.hint)
        monkeypatch.setenv("SSL_CERT_FILE", str(files.authority))
        with at(host, write=True) as there:
            put(there)
            assert get(there, tmp_path / "part") == BYTES
        with pytest.raises(RegistryError, match="answered with 400"):
            at(host, plain_http=True).has_blob(LAYER)
        with Tunnels() as proxy:
            monkeypatch.setenv("https_proxy", f"http://{proxy.host}")
            assert at(host).has_blob(LAYER)
            assert proxy.asked == [host]


@needs_registry
def test_a_registry_without_tls_is_told_as_one(open_registry: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _host, *rest, **named: resolve("127.0.0.1", *rest, **named))
    with pytest.raises(RegistryError, match="doesn't speak TLS") as error:
        at(f"registry.test:{open_registry.port}").has_blob(LAYER)
    assert "--plain-http" in str(error.value.hint)
    with at(f"registry.test:{open_registry.port}", write=True, plain_http=True) as there:
        put(there)


def test_nobody_there() -> None:
    with pytest.raises(Unreachable, match="no answer: Connection refused"):
        at("127.0.0.1:1").has_blob(LAYER)


# --- kept connections -----------------------------------------------------------------------------------------------


class Connections:
    """The number of requests on each of a server's connections, by the client's port."""

    def __init__(self) -> None:
        self.requests: dict[int, int] = {}

    def count(self, handler: BaseHTTPRequestHandler) -> int:
        port = int(handler.client_address[1])
        self.requests[port] = self.requests.get(port, 0) + 1
        return self.requests[port]


@pytest.mark.parametrize("whose", ["the registry's own", "another one"])
@pytest.mark.parametrize("refusal", [b'{"errors": [{"code": "UNAUTHORIZED"}]}', b"x" * MIB], ids=["short", "long"])
def test_a_token_server_while_the_refusal_is_unread(tmp_path: Path, whose: str, refusal: bytes) -> None:
    """The registry's refusal still occupies its connection when the client asks for a token."""
    kept = Connections()

    def give(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, 200, b'{"token": "abc"}')

    def answer(handler: BaseHTTPRequestHandler) -> None:
        kept.count(handler)
        if handler.path.startswith("/token"):
            give(handler)
        elif handler.headers.get("Authorization") != "Bearer abc":
            reply(handler, 401, refusal, WWW_Authenticate=f'Bearer realm="http://{realm}/token",service="r"')
        else:
            reply(handler, 200, BYTES)

    with Server(give) as other, Server(answer) as there:
        realm = there.host if whose == "the registry's own" else other.host
        with at(there.host) as registry:
            assert get(registry, tmp_path / "part") == BYTES
            for _ in range(5):
                assert registry.small_blob(LAYER, 4 * MIB) == BYTES
        assert len(there.asked) + len(other.asked) == 8
        assert len([path for _, path, _ in (*there.asked, *other.asked) if path.startswith("/token")]) == 1
        # At most one connection more: for the token, or in place of one with a long refusal that isn't read to its end.
        assert len(kept.requests) <= 2 and max(kept.requests.values()) >= 6


def test_a_connection_that_was_closed_meanwhile_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload repeats no request by itself; so it mustn't start one on a connection that the server has closed."""
    monkeypatch.setattr(client, "_pause", lambda *_: pytest.fail("a request went astray"))
    uploads, closed = Uploads([]), threading.Event()

    def closing(handler: BaseHTTPRequestHandler) -> None:
        uploads(handler)
        # The server doesn't announce the close, like servers that close idle connections. The first step of an upload
        # follows its begin too fast for that.
        handler.close_connection = handler.command != "POST"

    with Server(closing) as there, at(there.host, write=True) as registry:
        for _ in registry.upload(layer_of(LONG), io.BytesIO(LONG)):
            closed.wait(0.2)
        assert [method for method, *_ in there.asked] == ["POST", "PATCH", "PATCH", "PATCH", "PATCH", "PUT"]
    assert uploads.arrived == LONG


def test_an_answer_that_breaks_off_is_no_answer() -> None:
    def breaks(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, 200, BYTES[:1000], Content_Length=str(len(BYTES)))
        handler.close_connection = True

    with Server(breaks) as there, pytest.raises(Unreachable, match=r"no answer: IncompleteRead\(1000 bytes read"):
        at(there.host).small_blob(LAYER, 4 * MIB)


def test_each_of_several_challenges_counts() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/token"):
            reply(handler, 200, b'{"token": "abc"}')
        elif "Authorization" not in handler.headers:
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", "Negotiate")
            handler.send_header("WWW-Authenticate", f'Bearer realm="http://{there.host}/token"')
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            reply(handler, 200, BYTES)

    with Server(answer) as there:
        assert at(there.host).small_blob(LAYER, 4 * MIB) == BYTES


def test_what_is_sent_compressed_stays_as_it_is() -> None:
    """A layer's digest is that of the transferred bytes; and a few bytes mustn't decompress into many."""
    with Server(lambda handler: reply(handler, 200, BYTES, Content_Encoding="gzip")) as there:
        assert at(there.host).small_blob(LAYER, 4 * MIB) == BYTES
        assert there.asked[0][2]["Accept-Encoding"] == "identity"


# --- servers that misbehave -----------------------------------------------------------------------------------------


def test_a_redirect_takes_no_credentials_to_another_host(tmp_path: Path) -> None:
    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, 200, BYTES)

    with Server(elsewhere) as storage:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            if "Authorization" not in handler.headers:
                reply(handler, 401, WWW_Authenticate='Basic realm="x"')
            elif "again" not in handler.path:
                reply(handler, 307, Location=f"{handler.path}?again")
            else:
                reply(handler, 307, Location=f"http://{storage.host}/blob?signature=x")

        with Server(redirect) as there:
            docker_login(tmp_path / "docker", there.host)
            assert get(at(there.host), tmp_path / "part") == BYTES
            # On the same host the credentials are sent again.
            assert len(there.authorizations()) == 2
        assert len(storage.asked) == 1 and storage.authorizations() == []


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "/v2/loop"])
def test_redirects_to_nowhere_good(location: str) -> None:
    with (
        Server(lambda handler: reply(handler, 302, Location=location)) as there,
        pytest.raises(RegistryError, match=r"neither http nor https|more than 5 redirects"),
    ):
        at(there.host).has_blob(LAYER)


def test_what_is_uploaded_stays_with_the_registry(tmp_path: Path) -> None:
    with Server(lambda handler: reply(handler, 202)) as other:

        def elsewhere(handler: BaseHTTPRequestHandler) -> None:
            handler.rfile.read(int(handler.headers["Content-Length"]))
            if handler.command == "POST":
                reply(handler, 202, Location="/v2/models/nano/blobs/uploads/1?state=x")
            else:
                reply(handler, 307, Location=f"http://{other.host}/take")

        with Server(elsewhere) as there, pytest.raises(RegistryError, match="would have what is sent go to"):
            put(at(there.host, write=True))
        assert other.asked == []


class Uploads:
    """A registry that keeps the part of an upload that has arrived, as the specification says; its links break in the
    middle of a request, when the total of arrived bytes reaches the next number in `breaks`."""

    def __init__(self, breaks: list[int]) -> None:
        self.breaks, self.arrived, self.forgets = breaks, b"", False

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        here = {"Location": "/v2/models/nano/blobs/uploads/1"}
        if handler.command == "POST":
            self.arrived = b""
            reply(handler, 202, **here)
        elif handler.command == "PATCH":
            assert handler.headers["Content-Range"] == f"{len(self.arrived)}-{len(self.arrived) + len(body) - 1}"
            end = len(self.arrived) + len(body)
            if self.breaks and self.breaks[0] < end:
                self.arrived += body[: self.breaks.pop(0) - len(self.arrived)]
                handler.close_connection = True
                return
            self.arrived += body
            reply(handler, 202, **here)
        elif handler.command == "GET":
            status = 404 if self.forgets else 204
            reply(handler, status, Range=f"0-{max(0, len(self.arrived) - 1)}", **here)
        elif handler.command == "PUT":
            reply(handler, 201 if self.arrived == LONG else 400)
        else:
            reply(handler, 404)


LONG = content(13 * MIB + 5)


def test_an_upload_goes_on_where_the_registry_says() -> None:
    uploads = Uploads([MIB + 7, 6 * MIB, 6 * MIB + 1, 13 * MIB])
    with Server(uploads) as there, at(there.host, write=True) as registry:
        positions = list(registry.upload(layer_of(LONG), io.BytesIO(LONG)))
        assert len([1 for method, *_ in there.asked if method == "POST"]) == 1
    assert uploads.arrived == LONG and uploads.breaks == []
    assert positions == sorted(positions) and positions[-1] == len(LONG)


def test_an_upload_begins_anew_where_the_registry_forgets_and_not_for_ever() -> None:
    uploads = Uploads([6 * MIB])
    uploads.forgets = True
    with Server(uploads) as there, at(there.host, write=True) as registry:
        assert list(registry.upload(layer_of(LONG), io.BytesIO(LONG)))[-1] == len(LONG)
        assert len([1 for method, *_ in there.asked if method == "POST"]) == 2
    uploads.breaks = [6 * MIB] * 1000
    with (
        Server(uploads) as there,
        at(there.host, write=True) as registry,
        pytest.raises(RegistryError, match="no answer: "),
    ):
        list(registry.upload(layer_of(LONG), io.BytesIO(LONG)))
    assert len(uploads.breaks) > 900


def test_a_busy_registry_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([503, 429, 502])
    paused: list[float] = []
    monkeypatch.setattr(client.time, "sleep", paused.append)

    def busy(handler: BaseHTTPRequestHandler) -> None:
        status = next(answers, 200)
        later = {"Retry-After": "20"} if status == 429 else {}
        reply(handler, status, BYTES if status == 200 else b"", **later)

    with Server(busy) as there:
        assert get(at(there.host), tmp_path / "part") == BYTES
    assert len(paused) == 3 and 20 <= paused[1] <= 40 and paused[0] < paused[2] < 1
    with (
        Server(lambda handler: reply(handler, 503)) as there,
        pytest.raises(RegistryError, match="answered with 503: Service Unavailable"),
    ):
        at(there.host).has_blob(LAYER)


def test_wrong_bytes_are_refused_and_gone(tmp_path: Path) -> None:
    wrong = bytes(len(BYTES))
    with Server(lambda handler: reply(handler, 200, wrong)) as there:
        with pytest.raises(RegistryError, match=r"model\.onnx\.data isn't what its digest says"):
            get(at(there.host), tmp_path / "part")
        with pytest.raises(RegistryError, match="isn't what its digest says"):
            at(there.host).small_blob(LAYER, 10 * MIB)
        with pytest.raises(RegistryError, match="sends another manifest"):
            at(there.host).manifest(LAYER.digest)
    assert not (tmp_path / "part").exists()


def test_what_an_earlier_try_left_is_used_when_it_is_right(tmp_path: Path) -> None:
    def ranged(handler: BaseHTTPRequestHandler) -> None:
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        headers = {"Content_Range": f"bytes {start}-{len(BYTES) - 1}/{len(BYTES)}"} if start else {}
        reply(handler, 206 if start else 200, BYTES[start:], **headers)

    part = tmp_path / "part"
    with Server(ranged) as there:
        part.write_bytes(BYTES[:MIB])
        assert get(at(there.host), part) == BYTES
        assert [headers.get("Range") for _, _, headers in there.asked] == [f"bytes={MIB}-"]
        part.write_bytes(b"?" * MIB)
        assert get(at(there.host), part) == BYTES
        part.write_bytes(BYTES + b"more")
        assert get(at(there.host), part) == BYTES
        asked = len(there.asked)
        assert get(at(there.host), part) == BYTES
        assert len(there.asked) == asked


def test_servers_that_only_send_files_whole(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(BYTES[: MIB + 1])
    with Server(lambda handler: reply(handler, 200, BYTES)) as there:
        assert get(at(there.host), part) == BYTES


def test_another_part_than_asked_for_is_refused(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(BYTES[:MIB])
    with (
        Server(lambda handler: reply(handler, 206, BYTES, Content_Range="bytes 0-9/10")) as there,
        pytest.raises(RegistryError, match="sends another part"),
    ):
        get(at(there.host), part)


def test_more_than_stated_is_not_read(tmp_path: Path) -> None:
    with EndlessServer(BYTES) as there:
        assert get(at(there.host), tmp_path / "part") == BYTES
        with pytest.raises(RegistryError, match=f"an answer of more than {client.LARGEST_MANIFEST_BYTES} bytes"):
            at(there.host).manifest("v1")
    assert there.more < 1000


def test_a_file_that_ends_too_early(tmp_path: Path) -> None:
    with (
        Server(lambda handler: reply(handler, 206 if "Range" in handler.headers else 200, b"")) as there,
        pytest.raises(RegistryError, match=r"model\.onnx\.data ends after 0 of \d+ bytes"),
    ):
        get(at(there.host), tmp_path / "part")


def test_errors_of_a_registry_are_passed_on_as_plain_text() -> None:
    body = b'{"errors": [{"code": "DENIED", "message": "\\u001b[31mnot you' + b"!" * 500 + b'"}]}'
    with (
        Server(lambda handler: reply(handler, 418, body)) as there,
        pytest.raises(RegistryError) as error,
    ):
        at(there.host).manifest("v1")
    assert "answered with 418: [31mnot you!!" in error.value.message
    assert len(error.value.message) < 300


def test_a_proxy_for_plain_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(lambda handler: reply(handler, 404)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@{proxy.host}")
        assert not at("registry.test", plain_http=True).has_blob(LAYER)
        _, path, headers = proxy.asked[0]
    assert path == f"http://registry.test/v2/models/nano/blobs/{LAYER.digest}"
    assert headers["Proxy-Authorization"] == "Basic dXNlcjpwQHNz"
