"""The doctor against real servers and a real agent, healthy and not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import bundle as build, follow
from tests.support.pythons import calling_itself, real_python, script
from tests.support.servers import needs_root, needs_sshd, small_disk
from toolkit.config import config_dir
from toolkit.deploy import deploy
from toolkit.device import connect
from toolkit.emulate import EmbeddedServer, PrivateSshd
from toolkit.emulate.sshd import free_port, write_key_pair
from toolkit.jobs.doctor import Check, examine_target, exit_code
from toolkit.jobs.doctor.target import ON_DEVICE, REACHED_BY_SSH, TARGET

EVERYTHING = [TARGET, *REACHED_BY_SSH, *ON_DEVICE]
Server = PrivateSshd | EmbeddedServer


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "ssh_config"
    config.write_text("IdentityFile none\n")
    monkeypatch.setenv("EDGEPHI_SSH_CONFIG", str(config))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path) as server:
        yield server


def write_target(server: Server, root: Path, **changes: Any) -> None:
    facts: dict[str, Any] = {
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "profile": "local",
        "identity_file": str(server.identity_file),
        "known_hosts": str(server.known_hosts),
        "install_root": str(root),
    }
    write_file("targets", "pi5", facts | changes)


def write_file(kind: str, name: str, facts: dict[str, Any]) -> Path:
    path = config_dir() / kind / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in facts.items()))
    return path


def examine(name: str = "pi5") -> dict[str, Check]:
    """All checks by name, one of each."""
    found = list(examine_target(name))
    assert sorted(check.name for check in found) == sorted(EVERYTHING)
    return {check.name: check for check in found}


def failed(found: dict[str, Check]) -> list[str]:
    return [name for name, check in found.items() if check.state == "failed"]


def assert_stops_at(found: dict[str, Check], name: str) -> Check:
    """Assert that every check before `name` passed or was skipped, and that those after it were skipped; returns it."""
    assert failed(found) == [name]
    place = EVERYTHING.index(name)
    assert {found[before].state for before in EVERYTHING[:place]} <= {"ok", "skipped"}
    for after in EVERYTHING[place + 1 :]:
        assert found[after] == Check(after, "skipped", f"not looked at: {name} failed")
    return found[name]


@needs_sshd
def test_a_healthy_target_with_an_active_release(root: Path, tmp_path: Path) -> None:
    bundle = build("int4-rtn-b32")
    root.chmod(0o700)
    with PrivateSshd(tmp_path / "sshd") as server:
        write_target(server, root)
        with connect("pi5") as device:
            follow(deploy(bundle, device))
        found = list(examine_target("pi5"))
    assert [check.name for check in found] == EVERYTHING
    states = {check.name: check.state for check in found}
    assert {name for name, state in states.items() if state == "failed"} == set()
    for name in (TARGET, *REACHED_BY_SSH, "python", "install root", "agent", "glibc", "clock", "profile"):
        assert states[name] == "ok"
    assert found[-1] == Check("active release", "ok", f"{bundle.id[:12]} loads and generates")
    assert exit_code("pi5", found) == 0


@needs_sshd
def test_an_active_release_that_lost_a_file(root: Path, tmp_path: Path) -> None:
    bundle = build("int4-rtn-b32")
    with PrivateSshd(tmp_path / "sshd") as server:
        write_target(server, root)
        with connect("pi5") as device:
            follow(deploy(bundle, device))
        (root / "releases" / bundle.id / "genai_config.json").unlink()
        found = examine()
    assert failed(found) == ["active release"]
    assert "the runtime can't load this bundle" in found["active release"].seen
    assert found["active release"].hint is not None
    assert exit_code("pi5", found.values()) == 7


def test_a_target_where_nothing_is_installed_yet(embedded: EmbeddedServer, tmp_path: Path) -> None:
    write_target(embedded, tmp_path / "device")
    found = examine()
    assert failed(found) == []
    assert found["target"].seen == f"{embedded.user}@127.0.0.1, port {embedded.port}, profile local"
    assert found["name"].seen == "is 127.0.0.1"
    assert found["install root"].seen == f"{tmp_path / 'device'} (mode 0700)"
    assert found["active release"] == Check("active release", "skipped", "nothing is active")


def test_this_machine_as_a_target(local: Path) -> None:
    local.chmod(0o700)
    found = examine("local")
    assert failed(found) == []
    assert {found[name].seen for name in REACHED_BY_SSH} == {"this machine is reached without SSH"}


def test_a_device_that_is_off(embedded: EmbeddedServer, tmp_path: Path) -> None:
    port = free_port()
    write_target(embedded, tmp_path / "device", port=port)
    found = examine()
    check = assert_stops_at(found, "port")
    assert check.seen == f"pi5 (127.0.0.1:{port}): connection refused"
    assert check.hint == f"does sshd run there, on port {port}? On the device: sudo systemctl enable --now ssh"
    assert exit_code("pi5", found.values()) == 7


def test_something_else_listens_there(embedded: EmbeddedServer, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        write_target(embedded, tmp_path / "device", port=listener.getsockname()[1])
        listener.settimeout(5)
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        check = assert_stops_at(examine(), "port")
    assert "no SSH handshake" in check.seen


def test_a_name_that_nobody_knows(embedded: EmbeddedServer, tmp_path: Path) -> None:
    write_target(embedded, tmp_path / "device", host="no-such.invalid")
    check = assert_stops_at(examine(), "name")
    assert check.seen == f"pi5 (no-such.invalid:{embedded.port}): no address for the name 'no-such.invalid'"
    assert check.hint == "check the name, or use the IP address; NAME.local needs mDNS on this machine"


def test_an_unknown_host_key(embedded: EmbeddedServer, tmp_path: Path) -> None:
    write_target(embedded, tmp_path / "device", known_hosts=str(tmp_path / "empty"))
    found = examine()
    check = assert_stops_at(found, "host key")
    assert check.seen.startswith(f"pi5 (127.0.0.1:{embedded.port}): unknown host key ssh-ed25519 SHA256:")
    assert check.hint is not None
    assert f"edgephi targets trust pi5 {check.seen.split()[-1]}" in check.hint
    assert exit_code("pi5", found.values()) == 7


def test_a_changed_host_key(embedded: EmbeddedServer, tmp_path: Path) -> None:
    known = tmp_path / "known"
    other = write_key_pair(tmp_path / "other")
    known.write_text(f"[127.0.0.1]:{embedded.port} {other}\n")
    write_target(embedded, tmp_path / "device", known_hosts=str(known))
    check = assert_stops_at(examine(), "host key")
    assert "the host key has changed" in check.seen
    assert check.hint is not None and "ssh-keygen -R" in check.hint


def test_a_key_that_the_server_does_not_know(embedded: EmbeddedServer, tmp_path: Path) -> None:
    write_key_pair(tmp_path / "stranger")
    write_target(embedded, tmp_path / "device", identity_file=str(tmp_path / "stranger"))
    check = assert_stops_at(examine(), "login")
    assert f"login as '{embedded.user}' refused" in check.seen
    assert check.hint is not None and f"ssh-copy-id -p {embedded.port}" in check.hint


@needs_sshd
@needs_sshd
@pytest.mark.parametrize(("allowed", "state"), [(1, "warn"), (2, "warn"), (10, "ok")])
def test_few_sessions(tmp_path: Path, allowed: int, state: str) -> None:
    with PrivateSshd(tmp_path / "device", max_sessions=allowed) as server:
        write_target(server, tmp_path / "device")
        found = examine()
    assert failed(found) == []
    assert (found["sessions"].state, found["sessions"].seen.split()[0 if allowed > 3 else 1]) == (
        state,
        str(min(allowed, 3)),
    )


def test_a_runtime_that_is_not_there_yet(embedded: EmbeddedServer, tmp_path: Path) -> None:
    write_target(embedded, tmp_path / "device")
    found = examine()["runtime"]
    assert (found.state, found.seen.partition(":")[0]) == ("skipped", "not installed yet")


def test_a_server_without_sftp(tmp_path: Path) -> None:
    with PrivateSshd(tmp_path / "sshd", extra_config="Subsystem sftp /nonexistent/sftp-server") as server:
        write_target(server, tmp_path / "device")
        check = assert_stops_at(examine(), "SFTP")
    assert "the server offers no SFTP session" in check.seen
    assert check.hint is not None and "openssh-sftp-server" in check.hint


def test_no_python_there(embedded: EmbeddedServer, tmp_path: Path) -> None:
    write_target(embedded, tmp_path / "device", python="python9")
    found = examine()
    check = assert_stops_at(found, "python")
    assert check.seen.startswith("'python9' ended with exit code 127: ")
    assert check.hint == (
        "is there a Python at 'python9'? Set `python` in the target's file, or install python3 on the device"
    )
    assert exit_code("pi5", found.values()) == 7


def test_a_python_that_is_too_old_for_the_agent(embedded: EmbeddedServer, tmp_path: Path) -> None:
    python = tmp_path / "python-3.8"
    python.write_text("#!/bin/sh\necho Python 3.8.10\n")
    python.chmod(0o755)
    write_target(embedded, tmp_path / "device", python=str(python))
    check = assert_stops_at(examine(), "python")
    assert check.seen == f"pi5: '{python}' is Python 3.8.10, the runtime needs >=3.11,<3.15"
    assert check.hint is not None and "python install 3.12" in check.hint
    assert not (tmp_path / "device").exists()


def test_the_python_that_deploy_would_take_is_named(
    embedded: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    calling_itself("3.9.2", folder / "python3")
    real_python(folder / "python3.12")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    write_target(embedded, tmp_path / "device")
    check = examine()["python"]
    assert check.state == "ok"
    assert check.seen.startswith("pi5: 'python3' is Python 3.9.2, the runtime needs >=3.11,<3.15; /")
    assert check.seen.endswith("is taken instead")


def test_a_python_that_only_the_profile_refuses(embedded: EmbeddedServer, tmp_path: Path) -> None:
    path = write_file("profiles", "newer", {"schema_version": 1, "extends": "laptop-cpu-x86", "description": "x"})
    path.write_text(
        path.read_text() + '[runtime]\npython = ">=3.99"\n[hardware]\nram = "1 GiB"\nram_reserved = "1 MiB"\n'
    )
    write_target(embedded, tmp_path / "device", profile="newer")
    found = examine()
    assert "python" in failed(found)
    assert "the runtime needs >=3.99" in found["python"].seen
    assert found["agent"].state == "ok"


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Remount a disk read-only, as the kernel does after an error of an SD card."""
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)


@needs_root
def test_a_read_only_disk_before_anything_is_there(embedded: EmbeddedServer, tmp_path: Path) -> None:
    with small_disk(tmp_path / "card", "8m") as disk, read_only(disk):
        write_target(embedded, disk / "edgephi")
        found = examine()
    check = assert_stops_at(found, "install root")
    assert check.seen.startswith(f"pi5 (127.0.0.1:{embedded.port}): creating {disk}/edgephi/agent failed: ")
    assert check.hint == (
        f"on the device: mkdir -p {disk}/edgephi && touch {disk}/edgephi/x says why; "
        "or set install_root in the target's file"
    )
    assert exit_code("pi5", found.values()) == 7


@needs_root
def test_a_read_only_disk_with_the_agent_on_it(embedded: EmbeddedServer, tmp_path: Path) -> None:
    with small_disk(tmp_path / "card", "8m") as disk:
        write_target(embedded, disk / "edgephi")
        with connect("pi5") as device:
            device.agent.ensure()
        with read_only(disk):
            found = examine()
    assert failed(found) == ["install root", "disk"]
    assert found["install root"].seen == f"{disk}/edgephi can't be written to: Read-only file system"
    # The agent answers all the same, and so do the checks of its facts.
    assert found["agent"].state == "ok"
    assert found["disk"].seen.endswith("(tmpfs, tmpfs): not even the runtime fits")


def test_an_install_root_that_cannot_be_made(embedded: EmbeddedServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    write_target(embedded, tmp_path / "file" / "edgephi")
    check = assert_stops_at(examine(), "install root")
    assert f"creating {tmp_path}/file/edgephi/agent failed: " in check.seen


def test_an_install_root_that_others_can_write(embedded: EmbeddedServer, tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / "device").chmod(0o777)
    write_target(embedded, tmp_path / "device")
    check = assert_stops_at(examine(), "install root")
    assert "can be written to by others (mode 0777)" in check.seen
    assert check.hint is not None and f"chmod 700 {tmp_path / 'device'}" in check.hint
    (tmp_path / "device").chmod(0o700)
    assert failed(examine()) == []
    (tmp_path / "device").chmod(0o770)
    found = examine()
    assert failed(found) == ["install root"]
    assert f"chmod 700 {tmp_path / 'device'}" in str(found["install root"].hint)


def test_a_shell_that_talks_by_itself(embedded: EmbeddedServer, tmp_path: Path) -> None:
    python = script(tmp_path / "python-impostor", "echo Welcome!", 'exec python3 "$@"')
    write_target(embedded, tmp_path / "device", python=str(python))
    found = examine()
    assert failed(found) == []
    assert (found["shell"].state, found["shell"].seen) == ("warn", "a POSIX shell, which prints by itself: Welcome!")


def test_an_agent_that_says_something_else(embedded: EmbeddedServer, tmp_path: Path) -> None:
    python = script(tmp_path / "python-impostor", "echo Python 3.12.1")
    write_target(embedded, tmp_path / "device", python=str(python))
    found = examine()
    assert failed(found) == ["agent"]
    assert "isn't its protocol" in found["agent"].seen
    assert found["install root"].state == "skipped"


def test_a_target_that_does_not_exist() -> None:
    found = examine("pi6")
    check = assert_stops_at(found, "target")
    assert check.seen == "unknown target 'pi6'"
    assert exit_code("pi6", found.values()) == 3


def test_a_target_whose_profile_is_broken(embedded: EmbeddedServer, tmp_path: Path) -> None:
    write_target(embedded, tmp_path / "device", profile="raspbery-pi-5-8gb")
    check = assert_stops_at(examine(), "target")
    assert check.seen == "unknown profile 'raspbery-pi-5-8gb' (did you mean 'raspberry-pi-5-8gb'?)"


def test_only_the_targets_file_is_this_machines_fault() -> None:
    assert exit_code("pi5", [Check("target", "failed", "")]) == 3
    assert exit_code("pi5", [Check("python", "failed", ""), Check("glibc", "warn", "")]) == 7
    assert exit_code(None, [Check("python", "failed", "")]) == 3
    assert exit_code(None, [Check("python", "warn", "")]) == 0
