"""Pulls by the agent itself: from real registries and mirrors, and from servers that it mustn't trust."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.support.registries import (
    MIB,
    CuttingRelay,
    EndlessServer,
    LocalRegistry,
    Server,
    bundle_of,
    content,
    htpasswd,
    make_tls,
    needs_registry,
    registry,
    reply,
)
from tests.support.requests import install_parts, listed
from tests.support.servers import needs_root, small_disk
from toolkit.agent.device import pull as part

BYTES = content(5 * MIB + 3)
SHA256 = hashlib.sha256(BYTES).hexdigest()
ARTIFACT = {"sha256": SHA256, "size_bytes": len(BYTES)}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def pull(
    root: Path, *urls: str, tell: dict[str, Any] | None = None, env: dict[str, str] | None = None, **params: Any
) -> list[dict[str, Any]]:
    """Every message of one request; the answer to a request for an authorization is `tell`."""
    request = {"protocol": 1, "op": "pull", "by": "test", "artifacts": [ARTIFACT], "sources": urls} | params
    argv = [sys.executable, "-u", str(root / "agent" / "agent.pyz")]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | (env or {})
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        messages = []
        for line in process.stdout:
            messages.append(json.loads(line))
            if messages[-1].get("event", {}).get("type") == "authorize":
                process.stdin.write(json.dumps(tell) + "\n")
                process.stdin.flush()
    return messages


def url_of(server: Any, repository: str = "models/nano") -> str:
    return f"http://{server.host}/v2/{repository}"


def arrived(root: Path) -> bytes:
    return (root / "incoming" / f"{SHA256}.part").read_bytes()


def leave(root: Path, what: bytes) -> Path:
    file = root / "incoming" / f"{SHA256}.part"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(what)
    return file


def warnings(messages: list[dict[str, Any]]) -> list[str]:
    return [message["event"]["text"] for message in messages if message.get("event", {}).get("type") == "warning"]


def serving(what: bytes = BYTES, **headers: str) -> Server:
    return Server(lambda handler: reply(handler, 200, what, **headers))


# --- real registries ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        fill(running, tmp_path_factory.mktemp("bundle"))
        yield running


def fill(running: LocalRegistry, folder: Path) -> None:
    """Put BYTES into the registry, as a part of a bundle."""
    from tests.support.builds import follow
    from toolkit.bundle.registry import parse_place
    from toolkit.bundle.registry.transfer import push_bundle

    follow(push_bundle(bundle_of(folder / "bundle", {"model.onnx.data": BYTES}), parse_place(running.reference())))


@needs_registry
def test_a_file_comes_whole_and_once(root: Path, there: LocalRegistry) -> None:
    messages = pull(root, url_of(there))
    assert messages[-1]["result"] == {"files": 1, "pulled_bytes": len(BYTES), "reused_bytes": 0}
    assert arrived(root) == BYTES
    done = [message["event"]["done"] for message in messages if message.get("event", {}).get("type") == "progress"]
    assert done and done == sorted(done)
    assert pull(root, url_of(there))[-1]["result"] == {"files": 1, "pulled_bytes": 0, "reused_bytes": 0}
    blobs = root / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (root / "incoming" / f"{SHA256}.part").rename(blobs / SHA256)
    assert pull(root, url_of(there))[-1]["result"] == {"files": 0, "pulled_bytes": 0, "reused_bytes": 0}


@needs_registry
@pytest.mark.parametrize("left", [BYTES[: MIB + 1], b"\0" * MIB + BYTES[MIB : 2 * MIB], BYTES + b"more"])
def test_what_is_left_of_an_earlier_try_is_used_if_it_is_right(root: Path, there: LocalRegistry, left: bytes) -> None:
    leave(root, left)
    pulled = pull(root, url_of(there))[-1]["result"]["pulled_bytes"]
    assert arrived(root) == BYTES
    assert (pulled == len(BYTES) - MIB - 1) == (left == BYTES[: MIB + 1])


@pytest.mark.parametrize("content", [BYTES[:MIB], BYTES[:-1] + b"!"], ids=["begun", "damaged"])
@pytest.mark.parametrize("blocks", [{}, {"blocks": listed(BYTES[:MIB], BYTES[MIB:])}], ids=["whole", "in pieces"])
def test_a_link_to_somebody_elses_file_is_not_written_to(
    root: Path, tmp_path: Path, content: bytes, blocks: dict[str, Any]
) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(content)
    (root / "incoming").mkdir()
    os.link(theirs, root / "incoming" / f"{SHA256}.part")
    with serving() as server:
        pull(root, url_of(server), artifacts=[ARTIFACT | blocks])
    assert arrived(root) == BYTES and theirs.read_bytes() == content


@needs_registry
def test_a_link_that_breaks_twice(root: Path, there: LocalRegistry) -> None:
    relay = CuttingRelay(there.port, [2 * MIB, MIB])
    messages = pull(root, url_of(relay))
    relay.close()
    assert relay.cuts_left == 0
    assert messages[-1]["result"]["pulled_bytes"] == len(BYTES)
    assert arrived(root) == BYTES


@needs_registry
def test_a_mirror_of_the_real_kind(root: Path, there: LocalRegistry, tmp_path: Path) -> None:
    with registry(tmp_path / "mirror", upstream=f"http://{there.host}") as mirror:
        assert "result" in pull(root, url_of(mirror), url_of(there))[-1]
        assert arrived(root) == BYTES
        # The mirror keeps a blob only after it has passed.
        deadline = time.monotonic() + 60
        while not mirror.blob(SHA256).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        upstream = len(there.requests("GET", SHA256))
        leave(root, b"")
        assert "result" in pull(root, url_of(mirror), url_of(there))[-1]
        assert arrived(root) == BYTES
        assert len(mirror.requests("GET", SHA256)) == 2
    assert len(there.requests("GET", SHA256)) == upstream


@needs_registry
def test_a_password_comes_from_the_host_and_stays_in_memory(root: Path, tmp_path: Path) -> None:
    from tests.support.registries import docker_login

    with registry(tmp_path / "registry", auth=htpasswd(tmp_path)) as closed:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_CONFIG", str(docker_login(tmp_path / "docker", closed.host)))
            fill(closed, tmp_path)
        told = {"authorization": "Basic YW5uYTpwYXNzOndvcmQ="}
        messages = pull(root, url_of(closed), tell=told)
        assert [message["event"] for message in messages if "authorize" in str(message)] == [
            {"type": "authorize", "source": 0}
        ]
        assert arrived(root) == BYTES
        leave(root, b"")
        refused = pull(root, url_of(closed), tell={"authorization": None, "reason": "nobody knows us"})[-1]["error"]
        assert refused["code"] == "registry" and f"{closed.host}: nobody knows us" in refused["message"]
        assert "answers 401" in pull(root, url_of(closed), tell={"authorization": "Basic eDp5"})[-1]["error"]["message"]
    kept = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix != ".part")
    assert b"YW5uYTpwYXNzOndvcmQ=" not in kept


@needs_registry
def test_tls_is_verified(root: Path, tmp_path: Path) -> None:
    files = make_tls(tmp_path / "tls")
    with registry(tmp_path / "registry", tls=files) as secure:
        url = f"https://localhost:{secure.port}/v2/models/nano"
        problem = pull(root, url)[-1]["error"]["message"]
        assert f"localhost:{secure.port}: its certificate isn't trusted here" in problem
        trusting = pull(root, url, env={"SSL_CERT_FILE": str(files.authority)})[-1]["error"]["message"]
        assert f"localhost:{secure.port}: answers 404 Not Found" in trusting


# --- content that other files on the device have already ---

PARTS = (BYTES[: 2 * MIB], BYTES[2 * MIB : 3 * MIB], BYTES[3 * MIB : 3 * MIB + 9], BYTES[3 * MIB + 9 :])
CUT = ARTIFACT | {"blocks": listed(*PARTS)}


@needs_registry
def test_what_another_file_has_is_copied_and_the_rest_comes(root: Path, there: LocalRegistry) -> None:
    install_parts(root, b"other", PARTS[3], PARTS[0])
    before = len(there.requests("GET", SHA256))
    result = pull(root, url_of(there), artifacts=[CUT])[-1]["result"]
    lacking = len(PARTS[1] + PARTS[2])
    assert result == {"files": 1, "pulled_bytes": lacking, "reused_bytes": len(BYTES) - lacking}
    assert arrived(root) == BYTES
    assert len(there.requests("GET", SHA256)) == before + 1, "stretches that lie side by side are one request"


@needs_registry
def test_a_pull_of_pieces_that_was_ended_goes_on(root: Path, there: LocalRegistry) -> None:
    leave(root, PARTS[0] + bytes(len(PARTS[1])) + PARTS[2] + PARTS[3][:5])
    result = pull(root, url_of(there), artifacts=[CUT])[-1]["result"]
    assert arrived(root) == BYTES
    assert result["pulled_bytes"] == len(BYTES) - len(PARTS[0]), "nine bytes between two stretches aren't worth another"
    leave(root, bytes(len(PARTS[0])) + BYTES[len(PARTS[0]) : -1] + b"!")
    relay = CuttingRelay(there.port, [MIB])
    messages = pull(root, url_of(relay), artifacts=[CUT])
    relay.close()
    assert messages[-1]["result"]["pulled_bytes"] == len(PARTS[0] + PARTS[3]) and relay.cuts_left == 0
    assert arrived(root) == BYTES


def test_a_source_that_knows_no_ranges_is_asked_for_the_rest_at_once(root: Path) -> None:
    leave(root, bytes(len(PARTS[0])) + PARTS[1] + PARTS[2] + b"!" * len(PARTS[3]))
    with serving() as server:
        assert "result" in pull(root, url_of(server), artifacts=[CUT])[-1]
        assert len(server.asked) == 2
    assert arrived(root) == BYTES


def test_the_stretches_of_one_source_are_gone_on_with_from_the_next(root: Path) -> None:
    leave(root, bytes(len(PARTS[0])) + b"".join(PARTS[1:]))
    with Server(lambda handler: reply(handler, 404)) as lacking, serving() as good:
        assert pull(root, url_of(lacking), url_of(good), artifacts=[CUT])[-1]["result"]["pulled_bytes"] == 2 * MIB
    assert arrived(root) == BYTES


# --- mirrors that fail or lie ---------------------------------------------------------------------------------------


def test_the_next_source_is_asked_when_one_fails(root: Path) -> None:
    handlers: list[Callable[[BaseHTTPRequestHandler], None]] = [
        lambda handler: reply(handler, 404),
        lambda handler: reply(handler, 200, bytes(len(BYTES))),
        lambda handler: reply(handler, 403),
    ]
    lacking, lying, refusing = (Server(handler) for handler in handlers)
    with serving() as good:
        urls = [url_of(server) for server in (lacking, lying, refusing)]
        messages = pull(root, "http://127.0.0.1:1/v2/x", *urls, url_of(good))
    assert messages[-1]["result"]["files"] == 1
    assert arrived(root) == BYTES
    assert warnings(messages) == [
        "127.0.0.1:1 isn't asked any more: no answer: Connection refused",
        f"{lying.host} isn't asked any more: sends other content than the hash says",
    ]
    for server in (lacking, lying, refusing):
        assert len(server.asked) == 1
        server.close()


def test_what_nobody_has_is_told_with_every_reason(root: Path) -> None:
    with Server(lambda handler: reply(handler, 404)) as lacking, serving(bytes(len(BYTES))) as lying:
        error = pull(root, url_of(lacking), url_of(lying), "http://127.0.0.1:1/v2/x")[-1]["error"]
    assert error["code"] == "registry"
    assert error["message"] == (
        f"file {SHA256[:12]} (5.2 MB) can't be pulled there: {lacking.host}: answers 404 Not Found; "
        f"{lying.host}: sends other content than the hash says; 127.0.0.1:1: no answer: Connection refused"
    )
    assert arrived(root) == b""


def test_more_than_stated_is_cut_off(root: Path) -> None:
    with EndlessServer(BYTES) as server:
        assert "result" in pull(root, url_of(server))[-1]
    assert arrived(root) == BYTES and server.more < 1000
    leave(root, b"")
    with serving(BYTES + b"!") as server:
        message = pull(root, url_of(server))[-1]["error"]["message"]
    assert f"would send {len(BYTES) + 1} bytes instead of {len(BYTES)}" in message


def test_redirects_take_no_credentials_to_another_host(root: Path) -> None:
    with serving() as storage:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            if handler.headers.get("Authorization") != "Bearer t":
                reply(handler, 401, WWW_Authenticate="Bearer")
            else:
                reply(handler, 307, Location=f"http://{storage.host}/blob?signature=x")

        with Server(redirect) as server:
            assert "result" in pull(root, url_of(server), tell={"authorization": "Bearer t"})[-1]
            assert server.authorizations() == ["Bearer t"]
        assert len(storage.asked) == 1 and storage.authorizations() == []


def test_another_part_than_asked_for(root: Path) -> None:
    leave(root, BYTES[:MIB])
    with Server(lambda handler: reply(handler, 206, BYTES[:9], Content_Range="bytes 0-8/9")) as server:
        assert "sends another part" in pull(root, url_of(server))[-1]["error"]["message"]


def test_a_busy_source_is_asked_again(root: Path) -> None:
    statuses = iter([503, 429])
    asked_at = []

    def busy(handler: BaseHTTPRequestHandler) -> None:
        asked_at.append(time.monotonic())
        status = next(statuses, 200)
        later = {"Retry-After": "2"} if status == 429 else {}
        reply(handler, status, BYTES if status == 200 else b"", **later)

    with Server(busy) as server:
        assert "result" in pull(root, url_of(server))[-1]
    assert len(asked_at) == 3 and asked_at[2] - asked_at[1] >= 2


def test_a_limit_is_held(root: Path) -> None:
    with serving() as server:
        began = time.monotonic()
        assert "result" in pull(root, url_of(server), limit_bytes_per_s=4 * MIB)[-1]
    assert time.monotonic() - began > 1.2


def test_the_slowest_are_not_waited_for() -> None:
    assert not part.too_slow(0, 59)
    assert part.too_slow(59_000, 61)
    assert not part.too_slow(70_000, 61)


@needs_root
def test_what_cannot_fit_is_refused_before_the_first_byte(root: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "40m") as disk, serving() as server:
        (disk / "agent").mkdir()
        (disk / "agent" / "agent.pyz").write_bytes((root / "agent" / "agent.pyz").read_bytes())
        error = pull(disk, url_of(server))[-1]["error"]
        assert error["code"] == "device_full" and "5.2 MB to pull" in error["message"]
        assert server.asked == []


@pytest.mark.parametrize(
    "params",
    [
        {"artifacts": [{"sha256": "../../x", "size_bytes": 1}]},
        {"artifacts": [{"sha256": SHA256, "size_bytes": 1 << 50}]},
        {"artifacts": [{"sha256": SHA256, "size_bytes": -1}]},
        {"artifacts": [{"sha256": SHA256}]},
        {"artifacts": [ARTIFACT | {"blocks": [[5, SHA256]]}]},
        {"artifacts": [{"sha256": SHA256, "size_bytes": 1 << 30, "blocks": [[1 << 30, SHA256]]}]},
        {"sources": ["file:///etc/passwd"]},
        {"sources": ["registry/x"]},
    ],
)
def test_requests_that_are_none(root: Path, params: dict[str, Any]) -> None:
    assert pull(root, "http://127.0.0.1:1/v2/x", **params)[-1]["error"]["code"] == "bad_request"
    assert not list(root.glob("incoming/*"))
