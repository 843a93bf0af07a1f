"""Kits: they hold every request that a device needs, and no damaged file."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.asked import record_requests
from tests.support.boards import pi5_facts
from tests.support.builds import bundle as build, follow
from tests.support.devices import target_at
from tests.support.impostors import impostor, said
from tests.support.requests import ask as ask_agent
from toolkit.agent import agent_archive
from toolkit.bundle import open_bundle
from toolkit.bundle.blocks import bundle_blocks
from toolkit.bundle.registry import BlobSource
from toolkit.catalog import load_profile
from toolkit.deploy import deploy
from toolkit.deploy.kit import export_kit
from toolkit.deploy.provision import ensure_runtime
from toolkit.deploy.pull import pull
from toolkit.deploy.wheels import sha256_of
from toolkit.device import connect
from toolkit.errors import ConfigError, CorruptBundle

HERE, PI5 = load_profile("local"), load_profile("raspberry-pi-5-8gb")
MINOR = ".".join(platform.python_version_tuple()[:2])


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "kit.json").read_text())
    return found


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    follow(export_kit(build("int4-rtn-b32"), [HERE], tmp_path / "kit", pythons=[MINOR]))
    return tmp_path / "kit"


def ask(root: Path, request: dict[str, Any]) -> Any:
    """The agent's answer to an unchanged request of a kit."""
    return ask_agent(root, **{key: value for key, value in request.items() if key != "protocol"})["result"]


def test_its_requests_bring_the_bundle_to_a_device(kit: Path, root: Path) -> None:
    parts, bundle = read(kit), build("int4-rtn-b32")
    runtime = parts["profiles"]["local"]["runtimes"][MINOR]
    (root / "agent").mkdir(mode=0o700)
    (root / "agent" / "agent.pyz").write_bytes((kit / "agent.pyz").read_bytes())
    assert ask(root, parts["probe"])["arch"] == parts["profiles"]["local"]["arch"]
    assert ask(root, runtime["query"])["installed"] is False
    missing = [entry["sha256"] for entry in ask(root, parts["missing"])["missing"]]
    assert sorted(missing) == sorted(path.name for path in (kit / "blobs").iterdir())
    for sha256 in missing:
        (root / "incoming" / f"{sha256}.part").write_bytes((kit / "blobs" / sha256).read_bytes())
    for request in (parts["install"], runtime["check"], runtime["activate"]):
        ask(root, request)
    assert ask(root, parts["releases"])["pointer"]["release"] == bundle.id


def without_sender(request: dict[str, Any]) -> dict[str, Any]:
    assert request["by"] == "a kit"
    return {key: value for key, value in request.items() if key != "by"}


def test_its_requests_are_what_a_deploy_sends(kit: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = record_requests(monkeypatch)
    with connect(target_at(root)) as device:
        follow(deploy(build("int4-rtn-b32"), device))
    asked = {request["op"]: request for request in sent}
    parts = read(kit)
    runtime = parts["profiles"]["local"]["runtimes"][MINOR]
    for op in ("settle", "probe", "releases", "install"):
        assert without_sender(parts[op]) == asked[op]
    for op in ("check", "activate"):
        assert without_sender(runtime[op]) == asked[op]
    # A deploy looks for the release alone, then holds the lock and looks for files; it names packages in a query too.
    assert without_sender(parts["missing"]) == {
        **asked["hold"],
        **without(asked["missing"], "artifacts"),
    }
    assert without_sender(runtime["query"]) == without(asked["provision"], "packages")


def without(request: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in request.items() if key != name}


def test_a_runtime_is_asked_for_as_a_deploy_does(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = record_requests(monkeypatch)
    device = impostor(tmp_path, said(tmp_path, "result", {"installed": None}))
    follow(ensure_runtime(device, pi5_facts(python=platform.python_version()), offline=False))
    asked = [request for request in sent if request["op"] == "provision"]
    runtime = read(kit)["profiles"]["local"]["runtimes"][MINOR]
    assert [without_sender(runtime["query"]), without_sender(runtime["provision"])] == [
        without(asked[0], "packages"),
        asked[1],
    ]


def test_a_pull_is_asked_for_as_a_deploy_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, source = build("int4-rtn-b32"), BlobSource("registry.example.com", "models/nano")
    follow(export_kit(bundle, [HERE], tmp_path / "kit", pythons=[MINOR], source=source))
    sent = record_requests(monkeypatch)
    device = impostor(tmp_path, said(tmp_path, "result", {"files": 0, "pulled_bytes": 0, "reused_bytes": 0}))
    follow(pull(device, bundle.manifest.artifacts, source, follow(bundle_blocks(bundle))))
    parts = read(tmp_path / "kit")
    assert without_sender(parts["pull"]) == without(sent[-1], "limit_bytes_per_s")
    assert any("blocks" in artifact for artifact in parts["pull"]["artifacts"])
    assert without_sender(parts["install"])["blocks"].keys() == {
        artifact["sha256"] for artifact in parts["pull"]["artifacts"] if "blocks" in artifact
    }


def test_it_holds_the_agent_and_every_file_under_its_hash(kit: Path) -> None:
    assert (kit / "agent.pyz").read_bytes() == agent_archive()
    assert read(kit)["agent"]["sha256"] == sha256_of(kit / "agent.pyz")
    assert all(sha256_of(path) == path.name for path in (kit / "blobs").iterdir())


def test_profiles_have_a_runtime_for_each_python_that_suits(tmp_path: Path) -> None:
    follow(export_kit(build("int4-rtn-b32"), [HERE, PI5], tmp_path / "kit"))
    profiles = read(tmp_path / "kit")["profiles"]
    assert list(profiles["raspberry-pi-5-8gb"]["runtimes"]) == ["3.11", "3.12", "3.13", "3.14"]
    runtime = profiles["raspberry-pi-5-8gb"]["runtimes"]["3.11"]
    assert runtime["check"]["settings"]["chunk_size"] == 512
    assert any(line.startswith("onnxruntime-genai==0.18.0 --hash=") for line in runtime["provision"]["locked"])
    assert profiles["raspberry-pi-5-8gb"]["ram_bytes"] > PI5.hardware.ram_reserved_bytes
    reserved = PI5.hardware.ram_reserved_bytes
    assert profiles["raspberry-pi-5-8gb"]["memory_bytes"] == profiles["raspberry-pi-5-8gb"]["ram_bytes"] - reserved
    assert runtime["lock"] != profiles["local"]["runtimes"]["3.11"]["lock"]


def test_what_devices_pull_is_not_in_it(tmp_path: Path) -> None:
    source = BlobSource("registry.example.com", "models/nano", ("https://mirror.example.com",))
    follow(export_kit(build("int4-rtn-b32"), [HERE], tmp_path / "kit", source=source))
    places = ["https://mirror.example.com/v2/models/nano", "https://registry.example.com/v2/models/nano"]
    assert read(tmp_path / "kit")["pull"]["sources"] == places
    assert not list((tmp_path / "kit" / "blobs").iterdir())


def test_a_kit_is_replaced_and_nothing_else_is(kit: Path, tmp_path: Path) -> None:
    follow(export_kit(build("fp32"), [HERE], kit, pythons=[MINOR]))
    assert read(kit)["bundle"]["release"] == build("fp32").id
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="is there and isn't a kit"):
        follow(export_kit(build("fp32"), [HERE], tmp_path / "mine"))


def test_a_profile_without_any_of_the_pythons_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="profile local: its runtime needs Python >=3"):
        follow(export_kit(build("int4-rtn-b32"), [HERE], tmp_path / "kit", pythons=["3.10"]))
    assert not (tmp_path / "kit").exists()


def test_a_bundle_that_is_not_whole_makes_no_kit(tmp_path: Path) -> None:
    shutil.copytree(build("int4-rtn-b32").path, tmp_path / "torn")
    data = next((tmp_path / "torn").glob("*.data"))
    data.chmod(0o644)
    data.write_bytes(b"torn")
    with pytest.raises(CorruptBundle):
        follow(export_kit(open_bundle(tmp_path / "torn"), [HERE], tmp_path / "kit"))
    assert not (tmp_path / "kit").exists()
