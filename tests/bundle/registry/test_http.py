"""Answers that lead elsewhere, dribble, or never end: the client is never led astray, and never waits for ever."""

from __future__ import annotations

import io
import time
from http.server import BaseHTTPRequestHandler

import pytest

from tests.support.endless import DRIBBLES, dribbling
from tests.support.registries import Server, reply
from toolkit import untrusted
from toolkit.bundle.registry import Registry, client
from toolkit.bundle.registry.http import Web, joined, origin, parse_url, refuse_inward
from toolkit.bundle.registry.layout import Layer, Repository, file_layer
from toolkit.errors import RegistryError

LAYER: Layer = file_layer("model.onnx", "a" * 64, 5)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PAUSE_S", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def at(host: str, *, write: bool = False, plain_http: bool = False) -> Registry:
    return Registry(Repository.of(host, "models/nano", plain_http=plain_http), write=write)


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("http://[::1/", "'http://[::1/': neither http nor https"),
        ("http://127.0.0.1:99999/x", "http://127.0.0.1:99999/x: neither http nor https"),
        ("gopher://x/y", "gopher://x/y: neither http nor https"),
        ("http://user:pw@127.0.0.1/x?sig=s3cret", "http://127.0.0.1/x: an address with a login in it"),
        ("http://127.0.0.1/\x1b]0;x", "http://127.0.0.1/]0;x: neither http nor https"),
    ],
)
def test_redirects_to_what_is_no_address(location: str, says: str) -> None:
    with Server(lambda handler: reply(handler, 307, Location=location)) as there:
        with pytest.raises(RegistryError) as error:
            at(there.host).has_blob(LAYER)
        with pytest.raises(RegistryError):
            at(there.host).manifest("v1")
    assert error.value.message.endswith(says) and error.value.exit_code == 8
    assert "pw" not in str(error.value) and "s3cret" not in str(error.value)


def test_uploads_to_what_is_no_address() -> None:
    locations = ["http://[::1/", "https://user:pw@127.0.0.1/x", "ftp://x"]
    left = iter(locations)
    with Server(lambda handler: reply(handler, 202, Location=next(left))) as there:
        for _ in locations:
            with pytest.raises(RegistryError, match=r"neither http nor https|with a login in it"):
                list(at(there.host, write=True).upload(LAYER, io.BytesIO(b"graph")))


@pytest.mark.parametrize("inward", ["127.0.0.1:8080", "127.1", "localhost.", "0x7f.1", "[::]", "169.254.169.254"])
def test_a_registry_elsewhere_sends_nobody_to_this_machine(inward: str) -> None:
    elsewhere = parse_url("http://registry.test:5000/v2")
    with pytest.raises(RegistryError, match=r"^registry\.test:5000: sends us to http://.*, which is this machine "):
        refuse_inward(f"http://{inward}/x", elsewhere)
    refuse_inward(f"http://{inward}/x", parse_url("http://127.0.0.1:5000/v2"))
    refuse_inward("http://10.0.0.7/bucket", elsewhere)


def test_neither_redirects_nor_uploads_lead_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(lambda handler: reply(handler, 200)) as inside:

        def moved(handler: BaseHTTPRequestHandler) -> None:
            reply(handler, 202 if handler.command == "POST" else 307, Location=f"http://{inside.host}/x")

        with Server(moved) as proxy:
            monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
            with at("registry.test", write=True, plain_http=True) as registry:

                def upload(layer: Layer) -> None:
                    list(registry.upload(layer, io.BytesIO(b"graph")))

                for ask in (registry.has_blob, upload):
                    with pytest.raises(RegistryError, match=f"registry.test: sends us to http://{inside.host}/x"):
                        ask(LAYER)
        assert inside.asked == [] and len(proxy.asked) == 2


def test_one_server_by_several_spellings() -> None:
    assert origin("https://Registry.test/a") == origin("https://registry.test:443/b")
    assert origin("http://registry.test") == origin("http://registry.test:80")
    assert origin("http://registry.test") != origin("https://registry.test")
    assert joined("https://registry.test/v2/a/", "../b?c") == "https://registry.test/v2/b?c"


# --- answers without end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("begin", "piece"), DRIBBLES.values(), ids=DRIBBLES.keys())
def test_a_server_that_dribbles_is_given_up(begin: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "SLOW_S", 0.4)
    monkeypatch.setattr(client, "_TRIES", 2)
    began = time.monotonic()
    with Server(lambda handler: dribbling(handler, begin, piece, 0.05)) as there, pytest.raises(RegistryError):
        at(there.host).manifest("v1")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("piece", [b"HTTP/1.1 100 Continue\r\n\r\n", b"X: y\r\n"], ids=["100", "headers"])
def test_a_head_without_end_is_given_up(piece: bytes) -> None:
    begin = b"HTTP/1.1 200 OK\r\n" if piece.startswith(b"X") else b""
    with (
        Server(lambda handler: dribbling(handler, begin, piece * 1000, 0)) as there,
        pytest.raises(RegistryError) as error,
    ):
        Web().request("GET", f"http://{there.host}/x", {})
    assert "its answer's head has more than 262144 bytes" in error.value.message or "headers" in error.value.message


def test_a_slow_server_that_keeps_its_rate_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "SLOW_S", 0.3)
    body = b"x" * 6000

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for start in range(0, len(body), 500):
            handler.wfile.write(body[start : start + 500])
            time.sleep(0.1)

    with Server(slow) as there:
        assert Web().request("GET", f"http://{there.host}/x", {}).read(10_000) == body


def test_a_registry_that_takes_no_bytes_is_given_up() -> None:
    """It forgets each upload at its first step; and it counts other bytes than were sent."""
    size = client.CHUNK_BYTES + 1
    layer = file_layer("model.onnx", "a" * 64, size)
    for counted in ("0-0", "0-7", f"0-{size * 2}", "0-" + "9" * 5000):

        def refuse(handler: BaseHTTPRequestHandler, counted: str = counted) -> None:
            handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
            status = {"POST": 202, "PATCH": 416, "GET": 204}.get(handler.command, 404)
            reply(handler, status, Location="/v2/models/nano/blobs/uploads/1", Range=counted)

        with (
            Server(refuse) as there,
            at(there.host, write=True) as registry,
            pytest.raises(RegistryError) as error,
        ):
            list(registry.upload(layer, io.BytesIO(bytes(size))))
        assert error.value.message.endswith("/models/nano: takes none of the bytes of model.onnx")
        assert len(there.asked) < 60
