"""Deploying real bundles: to this machine, and over SSH to a loopback device."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support.boards import pi5_facts
from tests.support.builds import bundle as build, follow
from tests.support.devices import device_at, pointer, steps, target_over
from tests.support.servers import needs_root, needs_sshd, small_disk
from toolkit import localhost
from toolkit.agent.requests import ListReleases, Verify
from toolkit.bundle import Bundle, open_bundle
from toolkit.deploy import Delivery, deploy
from toolkit.deploy.install import check_active, install
from toolkit.device import connect
from toolkit.emulate import EmbeddedServer, PrivateSshd
from toolkit.errors import AgentError, ConfigError, CorruptBundle, DeviceFull, HostUnreachable
from toolkit.events import Event, Progress, Warning_
from toolkit.units import memory_text


@pytest.fixture
def fp32() -> Bundle:
    return build("fp32")


@pytest.fixture
def int4() -> Bundle:
    return build("int4-rtn-b32")


@pytest.fixture
def copy(int4: Bundle, tmp_path: Path) -> Bundle:
    """A copy of a bundle that the test may damage."""
    folder = tmp_path / "copy"
    shutil.copytree(int4.path, folder)
    for path in folder.rglob("*"):
        path.chmod(0o644)
    return open_bundle(folder)


def test_deploy_installs_proves_and_activates(root: Path, int4: Bundle) -> None:
    events: list[Event] = []
    with device_at(root) as device:
        release = follow(deploy(int4, device), events)
    assert pointer(root)["release"] == int4.id == release.bundle_id
    for artifact in int4.manifest.artifacts:
        assert (root / "releases" / int4.id / artifact.path).stat().st_size == artifact.size_bytes
    assert "here: load it and generate 4 tokens" in steps(events)
    pushed = [event for event in events if isinstance(event, Progress) and event.label == "push"]
    assert pushed[-1].done == pushed[-1].total


def test_deploying_again_does_nothing(root: Path, int4: Bundle) -> None:
    with device_at(root) as device:
        follow(deploy(int4, device))
    events: list[Event] = []
    with device_at(root) as device:
        follow(deploy(int4, device), events)
    assert steps(events) == ["here: probe"]


def test_a_local_push_leaves_the_bundle_its_own_files(root: Path, copy: Bundle) -> None:
    """Else damage to one would be damage to both, and no deploy could repair it; and `onnx.load` refuses such files."""
    with device_at(root) as device:
        follow(install(copy, device))
    artifact = max(copy.manifest.artifacts, key=lambda artifact: artifact.size_bytes)
    released = root / "releases" / copy.id / artifact.path
    assert released.stat().st_ino != (copy.path / artifact.path).stat().st_ino
    assert (copy.path / artifact.path).stat().st_nlink == 1


def test_files_that_a_second_bundle_shares_are_not_sent_again(root: Path, fp32: Bundle, int4: Bundle) -> None:
    with device_at(root) as device:
        follow(install(fp32, device))
        events: list[Event] = []
        follow(install(int4, device), events)
    known = {artifact.sha256 for artifact in fp32.manifest.artifacts}
    new = [artifact for artifact in int4.manifest.artifacts if artifact.sha256 not in known]
    assert 0 < len(new) < len(int4.manifest.artifacts)
    assert any(f"push {len(new)} of {len(int4.manifest.artifacts)} files" in step for step in steps(events))


def test_a_broken_push_goes_on_where_it_stopped(root: Path, int4: Bundle) -> None:
    largest = max(int4.manifest.artifacts, key=lambda artifact: artifact.size_bytes)
    content = (int4.path / largest.path).read_bytes()
    part = root / "incoming" / f"{largest.sha256}.part"
    part.parent.mkdir()
    part.write_bytes(content[: 2 * 2**20 + 7])
    events: list[Event] = []
    with device_at(root) as device:
        follow(install(int4, device), events)
    total = next(event.total for event in events if isinstance(event, Progress) and event.label == "push")
    # The part of an incomplete chunk that has arrived is sent again.
    assert total == int4.manifest.size_bytes - 2 * 2**20


def test_a_partial_file_of_other_content_is_overwritten(root: Path, int4: Bundle) -> None:
    largest = max(int4.manifest.artifacts, key=lambda artifact: artifact.size_bytes)
    part = root / "incoming" / f"{largest.sha256}.part"
    part.parent.mkdir()
    part.write_bytes(b"something else entirely")
    with device_at(root) as device:
        follow(deploy(int4, device))
    assert pointer(root)["release"] == int4.id


def test_a_corrupted_bundle_never_leaves_this_machine(root: Path, copy: Bundle) -> None:
    path = copy.path / max(copy.manifest.artifacts, key=lambda artifact: artifact.size_bytes).path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with device_at(root) as device, pytest.raises(CorruptBundle) as error:
        follow(deploy(copy, device))
    assert error.value.exit_code == 6
    assert path.name in error.value.message
    assert not (root / "current.json").exists()
    assert not (root / "incoming").exists() or not list((root / "incoming").iterdir())


def test_a_bundle_that_cannot_be_loaded_is_not_activated(root: Path, fp32: Bundle, copy: Bundle) -> None:
    from toolkit.bundle import describe_file
    from toolkit.bundle.store import write_bundle

    config = copy.path / "genai_config.json"
    config.write_text("{}")
    others = [artifact for artifact in copy.manifest.artifacts if artifact.path != config.name]
    artifacts = (*others, describe_file(config, config.name))
    broken = write_bundle(copy.path, copy.manifest.model_copy(update={"artifacts": artifacts}))
    with device_at(root) as device:
        follow(deploy(fp32, device))
        with pytest.raises(AgentError, match="the runtime can't load this bundle"):
            follow(deploy(broken, device))
    assert pointer(root)["release"] == fp32.id


def test_the_runtimes_own_words_say_why_a_bundle_does_not_generate(root: Path, copy: Bundle) -> None:
    """An end-of-text token beyond the vocabulary loads, and fails when a generator is made."""
    from toolkit.bundle import describe_file
    from toolkit.bundle.store import write_bundle

    path = copy.path / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["eos_token_id"] = 99_999_999
    path.unlink()
    path.write_text(json.dumps(config))
    artifacts = tuple(describe_file(copy.path / a.path, a.path) for a in copy.manifest.artifacts)
    broken = write_bundle(copy.path, copy.manifest.model_copy(update={"artifacts": artifacts}))
    with device_at(root) as device, pytest.raises(AgentError) as error:
        follow(deploy(broken, device))
    assert re.fullmatch(
        r"here: the runtime failed: RuntimeError: eos_token_id \(99999999\) must be in range \[0, \d+\) \(vocab_size\)",
        error.value.message,
    )
    assert error.value.exit_code == 7


def test_the_users_own_python_settings_do_not_reach_the_runtime(
    root: Path, int4: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    for module in ("onnxruntime_genai", "onnxruntime", "numpy"):
        (evil / f"{module}.py").write_text("raise SystemExit('the wrong module')")
    (evil / "sitecustomize.py").write_text("import os, sys\nif 'runtimes' in sys.executable: os._exit(9)\n")
    monkeypatch.setenv("PYTHONPATH", str(evil))
    with device_at(root) as device:
        follow(deploy(int4, device))
    assert pointer(root)["release"] == int4.id


def test_what_is_active_is_checked_as_it_is_used(root: Path, int4: Bundle) -> None:
    with device_at(root) as device:
        with pytest.raises(AgentError, match="nothing is active here"):
            follow(check_active(device))
        follow(deploy(int4, device))
        events: list[Event] = []
        follow(check_active(device), events)
        assert steps(events) == ["here: load what is active and generate 4 tokens"]
        (root / "releases" / int4.id / "genai_config.json").unlink()
        with pytest.raises(AgentError, match="the runtime can't load this bundle"):
            follow(check_active(device))


@needs_root
def test_a_full_device_is_told_before_the_first_byte(tmp_path: Path, runtimes: Path, int4: Bundle) -> None:
    with small_disk(tmp_path / "small", "40m") as disk:
        (disk / "runtimes").symlink_to(runtimes)
        with device_at(disk) as device, pytest.raises(DeviceFull) as error:
            follow(deploy(int4, device))
        assert not list((disk / "incoming").iterdir())
    assert "to send" in error.value.message and "free under" in error.value.message
    assert error.value.exit_code == 7


@pytest.mark.parametrize("kind", [pytest.param("sshd", marks=needs_sshd), "embedded"])
def test_deploy_over_ssh(kind: str, root: Path, int4: Bundle, tmp_path: Path) -> None:
    server = PrivateSshd(tmp_path) if kind == "sshd" else EmbeddedServer(tmp_path)
    with server, connect(target_over(server, root)) as device:
        follow(deploy(int4, device))
        listed = device.ask(ListReleases())
    assert listed.pointer.release == int4.id
    assert pointer(root)["release"] == int4.id


@needs_sshd
def test_a_link_that_breaks_in_mid_push_leaves_the_old_release_and_a_rerun_completes(
    root: Path, fp32: Bundle, int4: Bundle, tmp_path: Path
) -> None:
    with PrivateSshd(tmp_path) as server, connect(target_over(server, root)) as device:
        follow(deploy(int4, device))
        service = deploy(fp32, device)
        with pytest.raises(HostUnreachable):
            for event in service:
                if isinstance(event, Progress) and event.label == "push" and event.done > 2_000_000:
                    server.kill()
    assert pointer(root)["release"] == int4.id
    with PrivateSshd(tmp_path) as server, connect(target_over(server, root)) as device:
        follow(deploy(fp32, device))
    assert pointer(root)["release"] == fp32.id


def test_ctrl_c_in_mid_push_leaves_nothing_that_is_trusted(root: Path, fp32: Bundle, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, connect(target_over(server, root)) as device:
        service = deploy(fp32, device)
        for event in service:
            if isinstance(event, Progress) and event.label == "push":
                break
        service.close()
        assert not (root / "releases" / fp32.id).exists()
        assert not (root / "current.json").exists()
        follow(deploy(fp32, device))
    assert pointer(root)["release"] == fp32.id


@pytest.mark.parametrize("rotten", [False, True])
def test_what_another_release_has_is_not_sent(
    root: Path, fp32: Bundle, int4: Bundle, tmp_path: Path, *, rotten: bool
) -> None:
    """Two recipes of one model share the embedding, which is most of a quantized tiny model."""
    events: list[Event] = []
    with EmbeddedServer(tmp_path) as server, connect(target_over(server, root)) as device:
        follow(install(fp32, device))
        if rotten:
            weights = root / "releases" / fp32.id / "model.onnx.data"
            weights.chmod(0o644)
            with weights.open("r+b") as file:
                file.seek(2**20)
                file.write(b"rot")
        follow(install(int4, device), events)
        damaged = {entry.release: list(entry.damaged) for entry in device.ask(Verify()).releases}
    assert damaged == {fp32.id: ["model.onnx.data"] if rotten else [], int4.id: []}
    said = [step for step in steps(events) if step.endswith("are there already, in other releases")]
    sent = max(event.done for event in events if isinstance(event, Progress) and event.label == "push")
    assert len(said) == (0 if rotten else 1)
    # The embedding of 3.1 MB holds three whole chunks of 1 MiB.
    assert int4.manifest.size_bytes - sent >= (0 if rotten else 3 * 2**20)


def planned(bundle: Bundle, folder: Path, **changes: int) -> Bundle:
    """The bundle with changes in its plan."""
    from toolkit.bundle.store import write_bundle

    assert bundle.manifest.plan is not None
    plan = bundle.manifest.plan.model_copy(update=changes)
    return write_bundle(folder, bundle.manifest.model_copy(update={"plan": plan}))


def test_too_little_memory_is_told_before_the_first_byte(root: Path, copy: Bundle) -> None:
    large = planned(copy, copy.path, base_bytes=10**15)
    with device_at(root) as device, pytest.raises(ConfigError) as error:
        follow(deploy(large, device))
    assert "phi3-nano-int4-rtn-b32 needs 931,323 GiB of memory with its context of" in error.value.message
    assert "GiB of it for a model" in error.value.message
    assert error.value.hint is not None and "--force deploys it anyway" in error.value.hint
    assert not list((root / "incoming").iterdir())
    events: list[Event] = []
    with device_at(root) as device:
        follow(deploy(large, device, Delivery(force=True)), events)
    assert any(isinstance(event, Warning_) and "931,323 GiB" in event.text for event in events)
    assert pointer(root)["release"] == large.id


def test_a_context_that_would_fit_is_named(root: Path, copy: Bundle) -> None:
    per_token = 10**9
    greedy = planned(copy, copy.path, base_bytes=1, load_bytes=1, kv_bytes_per_token=per_token)
    with device_at(root) as device, pytest.raises(ConfigError) as error:
        follow(deploy(greedy, device))
    room = localhost.ram_bytes() - device.profile.hardware.ram_reserved_bytes
    assert error.value.message.endswith(f", {memory_text(room)} of it for a model")
    assert error.value.hint == f"optimize again with --context {(room - 1) // per_token}; --force deploys it anyway"


def test_memory_that_others_use_is_a_warning(root: Path, copy: Bundle) -> None:
    from toolkit.deploy.install import check_memory

    probe = pi5_facts(ram_bytes=16 * 10**9, mem_available_bytes=10**7)
    events: list[Event] = []
    with device_at(root) as device:
        follow(check_memory(copy, device, probe, force=False), events)
    (warning,) = [event.text for event in events if isinstance(event, Warning_)]
    assert warning.startswith("here: phi3-nano-int4-rtn-b32 needs ")
    assert " MiB of memory, " in warning
    assert warning.endswith("and 9.54 MiB are available there now: end what else runs")


def test_bundles_of_before_the_plan_deploy(root: Path, copy: Bundle) -> None:
    from toolkit.bundle.store import write_bundle

    old = write_bundle(copy.path, copy.manifest.model_copy(update={"plan": None}))
    with device_at(root) as device:
        follow(deploy(old, device))
    assert pointer(root)["release"] == old.id
