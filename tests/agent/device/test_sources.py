"""The servers that a device pulls from, when they redirect to where they mayn't, dribble, or never end."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

import pytest
from hypothesis import given, strategies as st

from tests.support.endless import DRIBBLES, dribbling
from tests.support.hostile_http import Scripted, answers
from tests.support.registries import Server, content, reply
from tests.support.untrusted_inputs import held
from toolkit import untrusted
from toolkit.agent.device import pull as part, sources
from toolkit.agent.device.sources import Broken, Refused, Source

BYTES = content(100_000)
SHA256 = hashlib.sha256(BYTES).hexdigest()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def source(url: str) -> Source:
    return Source(0, f"{url}/v2/models/nano", lambda _number: "Bearer t")


def get(there: Source) -> bytes:
    return b"".join(there.blocks(SHA256, 0, len(BYTES), len(BYTES)))


# --- redirects ------------------------------------------------------------------------------------------------------

NO_ADDRESS = "redirects to what is no address of http or https"


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("file:///etc/passwd", NO_ADDRESS),
        ("ftp://127.0.0.1/x", NO_ADDRESS),
        ("http://[::1/", NO_ADDRESS),
        ("http://127.0.0.1:99999/x", NO_ADDRESS),
        ("http://user:pw@127.0.0.1/x", NO_ADDRESS),
        ("http://127.0.0.1/\x1b]0;x", NO_ADDRESS),
        ("/v2/loop", "redirects in circles"),
    ],
)
def test_redirects_to_nowhere_good(location: str, says: str) -> None:
    with Server(lambda handler: reply(handler, 302, Location=location)) as server, pytest.raises(Refused) as error:
        get(source(f"http://{server.host}"))
    assert str(error.value) == says and error.value.for_good


@pytest.mark.parametrize(
    ("url", "location", "says"),
    [
        ("https://registry.test", "http://storage.test/x", "redirects to an address without TLS"),
        ("https://registry.test", "https://127.0.0.1:8080/x", "redirects to this device itself"),
        ("http://registry.test", "http://127.0.0.1:8080/x", "redirects to this device itself"),
        ("http://registry.test", "http://2130706433/x", "redirects to this device itself"),
        ("http://registry.test", "http://169.254.169.254/latest/meta-data", "redirects to this device itself"),
    ],
)
def test_a_source_elsewhere_sends_nobody_inward(
    url: str, location: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_source: Source, asked: str, _part: object) -> tuple[int, object]:
        assert asked.startswith(url), "a request went astray"
        return 307, Moved(location)

    monkeypatch.setattr(Source, "_exchange", answer)
    with pytest.raises(Refused, match=says):
        get(source(url))


class Moved:
    def __init__(self, location: str) -> None:
        self.headers = {"Location": location}

    def close(self) -> None:
        pass


def test_a_proxy_is_for_other_machines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, 307, Location=f"http://{there.host}/secret")

    with Server(lambda handler: reply(handler, 200, BYTES)) as there, Server(moved) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        assert get(source(f"http://{there.host}")) == BYTES
        assert proxy.asked == []
        with pytest.raises(Refused, match="redirects to this device itself"):
            get(source("http://registry.test"))
        assert len(proxy.asked) == 1 and len(there.asked) == 1


@pytest.mark.parametrize("port", ["", ":443"])
def test_the_usual_port_may_be_named(port: str) -> None:
    assert sources.origin(f"HTTPS://Registry.test{port}/x") == sources.origin("https://registry.test/y")
    assert sources.origin("https://registry.test:444") != sources.origin("https://registry.test")


# --- answers without end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("begin", "piece"), DRIBBLES.values(), ids=DRIBBLES.keys())
def test_a_server_that_dribbles_is_given_up(begin: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "SLOW_S", 0.5)
    began = time.monotonic()
    with Server(lambda handler: dribbling(handler, begin, piece, 0.05)) as server, pytest.raises(Broken) as error:
        get(source(f"http://{server.host}"))
    # The body of an error isn't read there.
    told = ("sends less than 1000 bytes a second", "timed out", "is busy (500)")
    assert any(words in str(error.value) for words in told)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("piece", [b"HTTP/1.1 100 Continue\r\n\r\n", b"X-%d: y\r\n" % 1], ids=["100", "headers"])
def test_a_head_without_end_is_given_up(piece: bytes) -> None:
    begin = b"HTTP/1.1 200 OK\r\n" if piece.startswith(b"X") else b""
    with Server(lambda handler: dribbling(handler, begin, piece * 1000, 0)) as server, pytest.raises(Broken) as error:
        get(source(f"http://{server.host}"))
    assert "its answer's head has more than 262144 bytes" in str(error.value) or "headers" in str(error.value)


def test_a_byte_at_a_time_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class OneByte(Source):
        def blocks(self, _sha256: str, start: int, _end: int, _size: int) -> Iterator[bytes]:
            self.answered = True
            asked.append(start)
            yield BYTES[start : start + 1]

    monkeypatch.setattr(part, "pause", lambda *_: None)
    there = OneByte(0, "http://registry.test/v2/x", lambda _number: "")
    wanted = part.Wanted({"sha256": SHA256, "size_bytes": len(BYTES)})
    stretch = [0, len(BYTES)]
    monkeypatch.setattr(part.Pulling, "__init__", lambda *_: None)
    monkeypatch.setattr(part.Pulling, "heard", lambda *_: None)
    pulling = part.Pulling([], None)
    pulling.limit = None
    with pytest.raises(Refused, match="ends after 6 of 100000 bytes"):
        for block in part.fetch(there, wanted, stretch, pulling):
            stretch[0] += len(block)
    assert asked == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("length", ["9" * 5000, "²", "-5", "1e3"])
def test_lengths_that_are_none(length: str) -> None:
    with (
        Server(lambda handler: reply(handler, 200, BYTES, Content_Length=length)) as server,
        suppress(Broken, Refused),
    ):
        assert len(get(source(f"http://{server.host}"))) <= len(BYTES)


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    with Scripted() as running:
        yield running


@pytest.mark.fuzz
@given(script=st.lists(answers(), min_size=1, max_size=4), start=st.sampled_from([0, 7]), end=st.sampled_from([9, 50]))
def test_whatever_a_source_says(scripted: Scripted, script: list[bytes], start: int, end: int) -> None:
    """A stretch of at most the bytes that were asked for comes out, or a reason why not."""
    scripted.begin(script)
    result = held(lambda: b"".join(source(f"http://{scripted.host}").blocks(SHA256, start, end, 50)), Broken, Refused)
    assert isinstance(result, Exception) or len(result) <= end - start
    assert scripted.asked < 20
