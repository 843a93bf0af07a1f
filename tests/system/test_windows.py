"""The host's half of everything, and the real agent, against a simulated Windows with OpenSSH's server."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.boards import BOARDS
from tests.support.builds import bundle, follow
from tests.support.windows import SHOP, Kind, WindowsServer
from toolkit.agent.requests import Install, ListReleases, Provision, Prune, RollBack, TakeProbe, Verify
from toolkit.bundle import Bundle, describe_file
from toolkit.bundle.store import write_bundle
from toolkit.catalog import Target
from toolkit.catalog.target import save_target
from toolkit.deploy import deploy
from toolkit.deploy.install import check_active
from toolkit.deploy.push import Upload, push
from toolkit.deploy.runtime import describe
from toolkit.device import Device, connect
from toolkit.errors import AgentError, CorruptBundle, RemoteCommandFailed
from toolkit.jobs.doctor import examine_target

PROFILE = """
schema_version = 1
description = "the simulated Windows machine"
[hardware]
arch = "x86_64"
os = "windows"
ram = "8 GiB"
ram_reserved = "2 GiB"
cores = 2
[runtime]
provider = "cpu"
packages = {packages}
platform_tags = ["win_amd64"]
python = ">=3.11,<3.15"
[defaults]
recipe = "int4-rtn-b32"
context = 512
"""


@pytest.fixture(params=["cmd", "powershell"])
def shell(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def server(shell: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WindowsServer]:
    """The server, with a laptop's tools and facts, and a message of the day that sshd prints before every command."""
    profiles = tmp_path / "config" / "profiles"
    profiles.mkdir(parents=True)
    packages = json.dumps(list(local_packages()))
    (profiles / "windows-test.toml").write_text(PROFILE.format(packages=packages))
    machine = tmp_path / "machine"
    facts = BOARDS / "laptop-intel-windows"
    for tool, output in (("powershell", "windows.json"), ("powercfg", "powercfg.txt")):
        script = machine / "tools" / tool
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f"#!/bin/sh\nexec cat '{facts / output}'\n")
        script.chmod(0o755)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with WindowsServer(machine, shell, motd="Authorized use only.\r\n") as running:
        yield running


def local_packages() -> tuple[str, ...]:
    from toolkit.catalog import load_profile

    return load_profile("local").runtime.packages


def target_of(server: WindowsServer, **fields: object) -> Target:
    known = {name: getattr(server, name) for name in ("host", "port", "user", "identity_file", "known_hosts")}
    return Target.model_validate({"name": "laptop", "profile": "windows-test", **known, **fields})


def give_runtime(device: Device, root: Path, runtimes: Path) -> None:
    """Put this machine's runtime where Windows would have its own: Windows' wheels can't be installed here."""
    probe = device.ask(TakeProbe())
    wanted = root / "runtimes" / describe(device.target, device.profile, probe).lock
    real = next(path for path in runtimes.iterdir() if (path / "ready.json").is_file())
    (wanted / "venv" / "Scripts").mkdir(parents=True)
    shutil.copy(real / "ready.json", wanted)
    shutil.copy(real / "venv" / "pyvenv.cfg", wanted / "venv")
    (wanted / "venv" / "lib").symlink_to(real / "venv" / "lib")
    (wanted / "venv" / "Scripts" / "python.exe").symlink_to(Path(sys.executable).resolve())


def other(built: Bundle, folder: Path) -> Bundle:
    """The same model under another id: its configuration ends with a blank line."""
    shutil.copytree(built.path, folder)
    config = folder / "genai_config.json"
    config.chmod(0o644)
    config.write_text(config.read_text() + "\n")
    kept = [artifact for artifact in built.manifest.artifacts if artifact.path != config.name]
    artifacts = (*kept, describe_file(config, config.name))
    (folder / "manifest.json").chmod(0o644)
    return write_bundle(folder, built.manifest.model_copy(update={"artifacts": artifacts}))


def test_the_whole_loop(server: WindowsServer, runtimes: Path, tmp_path: Path) -> None:
    with connect(target_of(server)) as device:
        probe = device.ask(TakeProbe())
        assert (probe.os, probe.arch, probe.board) == ("windows", "x86_64", "LENOVO 21NS000AGE")
        assert (probe.accelerators, probe.power_mode) == (("npu: Intel(R) AI Boost",), "Balanced")
        assert probe.install_root == str(server.home / ".edgephi")
        give_runtime(device, server.home / ".edgephi", runtimes)
        first = bundle("int4-rtn-b32")
        second = other(first, tmp_path / "second")
        for built in (first, second):
            follow(deploy(built, device))
        assert device.ask(ListReleases()).pointer.release == second.id
        assert follow(device.call(RollBack())).release == first.id
        follow(check_active(device))
        assert all(not entry.damaged for entry in device.ask(Verify()).releases)
        pruned = device.ask(Prune(keep=0))
        assert (pruned.removed, pruned.kept) == ((second.id,), (first.id,))
        blobs = {path.name for path in (server.home / ".edgephi/blobs/sha256").iterdir()}
        assert blobs == {artifact.sha256 for artifact in first.manifest.artifacts}


@pytest.fixture
def files(tmp_path: Path) -> list[Upload]:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).write_text(name * 1000)
        artifact = describe_file(tmp_path / name, name)
        found.append(Upload(tmp_path / name, artifact.sha256, artifact.size_bytes))
    return found


def installed(device: Device, files: list[Upload]) -> str:
    """Install a release of plain files."""
    follow(push(device, files))
    artifacts = [{"path": f"a/{f.source.name}", "sha256": f.sha256, "size_bytes": f.size_bytes} for f in files]
    text = json.dumps({"artifacts": artifacts})
    release = hashlib.sha256(text.encode()).hexdigest()
    device.ask(Install(release=release, manifest=text))
    return release


def test_a_folder_on_another_disk_with_blanks_and_signs(server: WindowsServer, files: list[Upload]) -> None:
    python = server.root / "C/Program Files/Python & Co (3.11)/python.exe"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (server.root / "D").mkdir()
    root = r"d:\Edge Phi & Söhne (x86)\it's 100"
    with connect(
        target_of(server, install_root=root, python=r"C:\Program Files\Python & Co (3.11)\python.exe")
    ) as device:
        release = installed(device, files)
        folder = server.root / "D/Edge Phi & Söhne (x86)/it's 100"
        assert (folder / "releases" / release / "a/one").read_text() == "one" * 1000
        assert device.agent.python == "C:/Program Files/Python & Co (3.11)/python.exe"


def test_a_push_that_was_cut_goes_on(server: WindowsServer, files: list[Upload]) -> None:
    with connect(target_of(server)) as device:
        incoming = server.home / ".edgephi/incoming"
        incoming.mkdir(parents=True)
        (incoming / f"{files[0].sha256}.part").write_bytes(files[0].source.read_bytes())
        assert follow(push(device, files)) == files[1].size_bytes


@pytest.mark.parametrize("shell", ["cmd"], indirect=True)
def test_what_a_program_has_open_stays_and_is_named(server: WindowsServer, files: list[Upload]) -> None:
    with connect(target_of(server)) as device:
        release = installed(device, files)
        inside = server.home / ".edgephi/releases" / release / "a/one"
        with (
            inside.open("rb"),
            pytest.raises(AgentError, match=f"a program on the device has .*{release}.* open") as error,
        ):
            device.ask(Prune(keep=0))
        assert "end what uses it there" in (error.value.hint or "")
        assert inside.is_file()
        assert device.ask(Prune(keep=0)).removed == (release,)


@pytest.mark.parametrize("shell", ["cmd"], indirect=True)
def test_a_file_that_is_open_for_a_moment_is_waited_for(server: WindowsServer, files: list[Upload]) -> None:
    with connect(target_of(server)) as device:
        follow(push(device, files))
        part = (server.home / ".edgephi/incoming" / f"{files[0].sha256}.part").open("rb")
        threading.Timer(0.5, part.close).start()
        installed(device, files)


@pytest.mark.parametrize("shell", ["cmd"], indirect=True)
def test_a_disk_without_links(server: WindowsServer, files: list[Upload]) -> None:
    server.session.extra = {"EDGEPHI_TEST_NO_LINKS": "1"}  # type: ignore[attr-defined]
    with connect(target_of(server)) as device:
        release = installed(device, files)
        copy = server.home / ".edgephi/releases" / release / "a/one"
        assert (copy.stat().st_nlink, copy.read_text()) == (1, "one" * 1000)


@pytest.mark.parametrize("shell", ["cmd"], indirect=True)
@pytest.mark.parametrize("name", ["aux.txt", "a?b", "end.", "NUL"])
def test_names_that_windows_has_not_are_refused(server: WindowsServer, name: str) -> None:
    text = json.dumps({"artifacts": [{"path": f"a/{name}", "sha256": "0" * 64, "size_bytes": 1}]})
    release = hashlib.sha256(text.encode()).hexdigest()
    with (
        connect(target_of(server)) as device,
        pytest.raises(CorruptBundle, match="the manifest is refused: unsafe file"),
    ):
        device.ask(Install(release=release, manifest=text))


@pytest.mark.parametrize("shell", ["cmd"], indirect=True)
def test_paths_that_would_be_too_long_are_refused_beforehand(server: WindowsServer, files: list[Upload]) -> None:
    root = "C:/" + "/".join(["long" * 10] * 4)
    with connect(target_of(server, install_root=root)) as device:
        with pytest.raises(AgentError, match="Windows allows paths of 259 characters, this one has") as error:
            installed(device, files)
        assert "C:/edgephi" in (error.value.hint or "")
        with pytest.raises(AgentError, match="259"):
            device.ask(Provision(lock="0" * 16, packages=[]))


def test_the_python_is_looked_for(server: WindowsServer) -> None:
    server.session.pythons = {"python": [sys.executable]}  # type: ignore[attr-defined]
    with connect(target_of(server)) as device:
        assert device.agent.python == "python"
        assert device.ask(ListReleases()).releases == ()


def test_no_python_but_the_shops(server: WindowsServer) -> None:
    server.session.pythons = {"python": [sys.executable, "-c", SHOP]}  # type: ignore[attr-defined]
    with (
        connect(target_of(server)) as device,
        pytest.raises(RemoteCommandFailed, match="no Python 3 is there") as error,
    ):
        device.ask(TakeProbe())
    assert "winget install" in (error.value.hint or "")


def test_a_version_of_the_launcher(server: WindowsServer) -> None:
    with connect(target_of(server, python="py -3.12")) as device:
        assert device.ask(ListReleases()).releases == ()


@pytest.mark.parametrize("shell", ["cmd"], indirect=True)
def test_a_server_whose_greeting_does_not_tell(server: WindowsServer) -> None:
    server.greeting = "SSH-2.0-Renamed"
    with connect(target_of(server, os="windows")) as device:
        assert device.agent.python == "py -3"


def test_the_doctor(server: WindowsServer, tmp_path: Path) -> None:
    save_target(target_of(server), tmp_path / "config" / "targets")
    found = {check.name: check for check in examine_target("laptop")}
    assert [check.name for check in found.values() if check.state == "failed"] == []
    assert found["python"].seen.startswith("'py -3' is 3.")
    name = {"cmd": "cmd.exe", "powershell": "PowerShell"}[server.shell]
    assert found["shell"].seen == f"{name}, which prints by itself: Authorized use only."
