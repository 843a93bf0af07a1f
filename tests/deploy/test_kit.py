"""Kits: that they hold all that a device has to be asked, and nothing that isn't whole."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import bundle as build
from tests.support.builds import follow
from tests.support.devices import target_at
from toolkit.agent.archive import agent_archive
from toolkit.bundle.registry.layout import BlobSource
from toolkit.bundle.store import open_bundle
from toolkit.catalog.profile import load_profile
from toolkit.deploy.kit import export_kit
from toolkit.deploy.wheels import sha256_of
from toolkit.device.session import connect
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


def ask(device: Any, request: dict[str, Any]) -> Any:
    """The request as it stands, but for what the connection adds itself."""
    return device.ask(**{key: value for key, value in request.items() if key not in ("protocol", "by")})


def test_its_requests_bring_the_bundle_to_a_device(kit: Path, root: Path) -> None:
    parts, bundle = read(kit), build("int4-rtn-b32")
    runtime = parts["profiles"]["local"]["runtimes"][MINOR]
    with connect(target_at(root)) as device:
        assert ask(device, parts["probe"])["arch"] == parts["profiles"]["local"]["arch"]
        assert ask(device, runtime["query"])["installed"] is False
        missing = [entry["sha256"] for entry in ask(device, parts["missing"])["missing"]]
        assert sorted(missing) == sorted(path.name for path in (kit / "blobs").iterdir())
        for sha256 in missing:
            (root / "incoming" / f"{sha256}.part").write_bytes((kit / "blobs" / sha256).read_bytes())
        for request in (parts["install"], runtime["check"], runtime["activate"]):
            ask(device, request)
        assert ask(device, parts["releases"])["pointer"]["release"] == bundle.id


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
