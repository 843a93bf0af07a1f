"""The errors when a device can't be reached: exact words, exit code, the next step, and never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import needs_sshd
from tests.support.targets import write_target
from toolkit.emulate import PrivateSshd
from toolkit.emulate.sshd import free_port

pytestmark = needs_sshd


def probe() -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", "targets", "probe", "pi5"], capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    config = tmp_path / "ssh_config"
    config.write_text("IdentityFile none\n")
    monkeypatch.setenv("EDGEPHI_SSH_CONFIG", str(config))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    folder = tmp_path / "sshd"
    folder.mkdir()
    with PrivateSshd(folder) as server:
        yield server


def test_a_device_that_answers(tmp_path: Path, server: PrivateSshd) -> None:
    write_target(tmp_path, server)
    done = probe()
    assert done.returncode == 0, done.stderr
    assert "pi5 fits profile local; the connection and the agent work" in done.stderr


def test_nobody_listens(tmp_path: Path, server: PrivateSshd) -> None:
    port = free_port()
    write_target(tmp_path, server, port=port)
    done = probe()
    assert done.returncode == 7
    assert f"error: pi5 (127.0.0.1:{port}): connection refused" in done.stderr
    assert "hint: does sshd run there" in done.stderr


def test_an_unknown_host_key_is_refused_and_trusted_only_by_its_fingerprint(
    tmp_path: Path, server: PrivateSshd
) -> None:
    empty = tmp_path / "known_hosts"
    write_target(tmp_path, server, known_hosts=str(empty))
    done = probe()
    assert done.returncode == 7
    fingerprint = next(word for word in done.stderr.split() if word.startswith("SHA256:")).rstrip(".,;'")
    assert f"edgephi targets trust pi5 {fingerprint}" in done.stderr
    trust = [sys.executable, "-m", "toolkit", "targets", "trust", "pi5"]
    wrong = subprocess.run([*trust, "SHA256:" + "A" * 43], capture_output=True, text=True)
    assert wrong.returncode == 7
    assert not empty.exists()
    assert subprocess.run([*trust, fingerprint], capture_output=True).returncode == 0
    assert probe().returncode == 0


def test_a_changed_host_key_is_refused(tmp_path: Path, server: PrivateSshd) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with PrivateSshd(other) as impostor:
        known = server.known_hosts.read_text().replace(f":{server.port}", f":{impostor.port}")
        (tmp_path / "known_hosts").write_text(known)
        write_target(tmp_path, impostor, known_hosts=str(tmp_path / "known_hosts"))
        done = probe()
    assert done.returncode == 7
    assert "pi5" in done.stderr and "changed" in done.stderr
    assert "ssh-keygen" in done.stderr and "-R" in done.stderr


def test_a_key_that_the_server_does_not_know(tmp_path: Path, server: PrivateSshd) -> None:
    key = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    write_target(tmp_path, server, identity_file=str(key))
    done = probe()
    assert done.returncode == 7
    assert "error: pi5" in done.stderr and "refused" in done.stderr


def test_no_python_on_the_device(tmp_path: Path, server: PrivateSshd) -> None:
    write_target(tmp_path, server, python="python9")
    done = probe()
    assert done.returncode == 7
    assert "exit code 127" in done.stderr
    assert "is there a Python at 'python9'?" in done.stderr
