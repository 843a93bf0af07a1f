"""Devices that pull a bundle from a real registry, over SSH and on this machine; and the failures on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, follow
from tests.support.devices import device_at, pointer, steps, target_over
from tests.support.fleets import device_root, here
from tests.support.registries import (
    PASSWORD,
    LocalRegistry,
    Server,
    bundle_of,
    docker_login,
    htpasswd,
    needs_registry,
    registry,
    reply,
)
from tests.support.token_servers import TokenServer
from toolkit.agent.messages import Authorize
from toolkit.agent.requests import Install, Verify
from toolkit.bundle import Block, Bundle
from toolkit.bundle.blocks import block_lists
from toolkit.bundle.registry import BlobSource, Place, parse_place
from toolkit.bundle.registry.layout import with_mirrors
from toolkit.bundle.registry.transfer import push_bundle, remote_bundle
from toolkit.catalog import load_profile
from toolkit.deploy import Delivery, deploy
from toolkit.deploy.install import install
from toolkit.deploy.pull import _Tokens, pull
from toolkit.device import connect
from toolkit.emulate import EmbeddedServer
from toolkit.errors import AgentError, ConfigError, RegistryError
from toolkit.events import Event, Progress, Warning_
from toolkit.jobs.gate import with_gate_figures
from toolkit.jobs.rollout import RolloutOptions, roll_out
from toolkit.jobs.rollout.record import find_rollout


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        follow(push_bundle(build("int4-rtn-b32"), parse_place(running.reference())))
        yield running


@pytest.fixture
def place(there: LocalRegistry) -> Place:
    return parse_place(there.reference())


@pytest.fixture
def source(there: LocalRegistry) -> BlobSource:
    return BlobSource(there.host, "models/nano")


def told(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Warning_)]


@needs_registry
def test_a_device_over_ssh_pulls_what_this_machine_never_had(
    root: Path, place: Place, source: BlobSource, tmp_path: Path
) -> None:
    remote = follow(remote_bundle(place))
    assert remote.id == build("int4-rtn-b32").id and not remote.is_here
    events: list[Event] = []
    with EmbeddedServer(tmp_path) as server, connect(target_over(server, root)) as device:
        release = follow(deploy(remote, device, Delivery(source=source)), events)
        again: list[Event] = []
        follow(deploy(remote, device, Delivery(source=source), release.prepared), again)
    assert pointer(root)["release"] == release.bundle_id == remote.id
    assert f"pi5: pull from {place.host}" in steps(events)
    assert {event.label for event in events if isinstance(event, Progress)} == {"pull", "verify"}
    assert steps(again) == []


@needs_registry
@pytest.mark.parametrize("lists", ["right", "false"])
def test_what_another_release_has_is_not_pulled(
    root: Path, there: LocalRegistry, source: BlobSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: str
) -> None:
    """Two recipes of one model share the embedding, which is most of a quantized tiny model."""
    fp32, int4 = build("fp32"), build("int4-rtn-b32")
    place = parse_place(there.reference(f"models/nano:{lists}"))
    if lists == "false":
        monkeypatch.setattr("toolkit.bundle.registry.transfer.block_lists", lambda blocks: block_lists(shifted(blocks)))
    follow(push_bundle(int4, place))
    events: list[Event] = []
    with EmbeddedServer(tmp_path) as server, connect(target_over(server, root)) as device:
        follow(install(fp32, device))
        # This machine knows only the registry's manifest of the bundle.
        monkeypatch.setenv("EDGEPHI_CACHE_DIR", str(tmp_path / "elsewhere"))
        remote = follow(remote_bundle(place))
        follow(install(remote, device, Delivery(source=source)), events)
        damaged = {entry.release: list(entry.damaged) for entry in device.ask(Verify()).releases}
    assert damaged == {fp32.id: [], int4.id: []}
    came = [step for step in steps(events) if " files came, " in step]
    assert came[0].endswith(" MB were there already, in other releases")
    pulled = max(event.done for event in events if isinstance(event, Progress) and event.label == "pull")
    if lists == "right":
        assert len(came) == 1 and int4.manifest.size_bytes - pulled > 3 * 2**20
    else:
        assert len(came) == 2 and "already" not in came[1]
        assert len(told(events)) == 1 and told(events)[0].endswith(": it is sent afresh")


def shifted(blocks: dict[str, tuple[Block, ...]]) -> dict[str, tuple[Block, ...]]:
    """Lists that have each file's longest block begin at its second byte."""
    found = {}
    for sha256, listed in blocks.items():
        longest = max(listed, key=lambda block: block.length)
        rest = sum(block.length for block in listed) - longest.length - 1
        found[sha256] = (Block(1, "0" * 64), longest, Block(rest, "0" * 64))
    return found


@needs_registry
def test_a_mirror_that_lies_is_left_for_the_registry(there: LocalRegistry, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", {"model.onnx": b"graph", "data": b"d" * 100_000, "empty": b""})
    follow(push_bundle(bundle, parse_place(there.reference("models/small"))))
    with Server(lambda handler: reply(handler, 200, b"lies!")) as liar, device_at(tmp_path / "device") as device:
        source = with_mirrors(BlobSource(there.host, "models/small"), [f"http://{liar.host}"])
        events: list[Event] = []
        assert follow(pull(device, bundle.manifest.artifacts, source), events) == bundle.manifest.size_bytes + 5
        assert len(liar.asked) == 1
        device.ask(Install(release=bundle.id, manifest=bundle.manifest_text))
    assert told(events) == [f"here: {liar.host} isn't asked any more: sends other content than the hash says"]


def test_what_a_device_cannot_pull_is_told(root: Path, tmp_path: Path) -> None:
    int4, nowhere = build("int4-rtn-b32"), BlobSource("127.0.0.1:1", "models/nano")
    refused = "127.0.0.1:1: no answer: Connection refused"
    with device_at(root) as device:
        with pytest.raises(RegistryError, match=refused) as error:
            follow(install(int4, device, Delivery(source=nowhere)))
        assert error.value.exit_code == 8 and "push it from here instead" in str(error.value.hint)
        assert not (root / "releases").exists()
        follow(install(int4, device))
        assert (root / "releases" / int4.id).is_dir()
    with EmbeddedServer(tmp_path) as server, connect(target_over(server, tmp_path / "empty")) as device:
        with pytest.raises(RegistryError, match=refused) as error:
            follow(pull(device, int4.manifest.artifacts, nowhere))
        assert "127.0.0.1:1 is the device itself there" in str(error.value.hint)


@needs_registry
def test_passwords_and_tokens_are_the_hosts(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", {"model.onnx": b"graph", "data": b"d" * 100_000})
    with TokenServer(tmp_path / "keys") as tokens:
        for number, auth in enumerate((tokens.auth, htpasswd(tmp_path))):
            with registry(tmp_path / f"registry{number}", auth=auth) as closed:
                source = BlobSource(closed.host, "closed/nano")
                docker_login(tmp_path / "docker", closed.host)
                follow(push_bundle(bundle, Place(closed.host, "closed/nano")))
                root = tmp_path / f"device{number}"
                with device_at(root) as device:
                    assert follow(pull(device, bundle.manifest.artifacts, source)) == bundle.manifest.size_bytes
                kept = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
                assert PASSWORD.encode() not in kept
                (tmp_path / "docker" / "config.json").unlink()
                with (
                    device_at(tmp_path / f"other{number}") as device,
                    pytest.raises(RegistryError, match="nobody without a password may pull from it"),
                ):
                    follow(pull(device, bundle.manifest.artifacts, source))


def test_a_device_asks_for_the_sources_that_it_was_given_and_for_nothing_else() -> None:
    tokens = _Tokens("pi5", BlobSource("a.example.com", "x", ("https://b.example.com",)).repositories(), [])
    with pytest.raises(AgentError, match="pi5: the agent asks for a source that it wasn't given: 2"):
        tokens.reply(Authorize(source=2))


@needs_registry
def test_a_rollout_pulls(
    there: LocalRegistry, runtimes: Path, place: Place, source: BlobSource, tmp_path: Path
) -> None:
    remote = follow(remote_bundle(place))
    targets = [here(name, device_root(tmp_path / name, runtimes)) for name in ("d1", "d2")]
    events: list[Event] = []
    rollout = follow(roll_out(remote, targets, RolloutOptions(source=source)), events)
    assert [device.state for device in rollout.devices] == ["done", "done"]
    for target in targets:
        assert pointer(Path(target.install_root))["release"] == remote.id
    assert find_rollout(rollout.id).options.source == source
    largest = max(remote.manifest.artifacts, key=lambda artifact: artifact.size_bytes)
    assert all(device.sent_bytes < largest.size_bytes / 10 for device in rollout.devices)


@needs_registry
def test_a_gate_asks_for_figures_that_only_a_whole_bundle_can_get(place: Place) -> None:
    remote: Bundle = follow(remote_bundle(place))
    profile = load_profile("local")
    limits = profile.limits.model_copy(update={"min_token_match": 0.1})
    with pytest.raises(ConfigError, match="its files aren't here"):
        follow(with_gate_figures(remote, profile.model_copy(update={"limits": limits})))
