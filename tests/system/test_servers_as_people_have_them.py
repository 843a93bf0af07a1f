"""Real OpenSSH servers in the ways that people set them up: limits, algorithms, shells, factors."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.servers import IN_CI, address_of, connects, needs_root, needs_sshd
from toolkit.agent.requests import ListReleases
from toolkit.catalog import Target
from toolkit.device import Device, connect
from toolkit.device.ssh import link as ssh_link
from toolkit.device.ssh.client import SshTransport
from toolkit.emulate import PrivateSshd, sshd as sshd_module
from toolkit.emulate.sshd import find_sshd
from toolkit.errors import AuthFailed, DeviceError, HostUnreachable, RemoteCommandFailed

pytestmark = [needs_sshd, pytest.mark.usefixtures("config")]


# --- limits of a server ---


def test_a_server_that_others_are_logging_in_to(tmp_path: Path) -> None:
    with PrivateSshd(tmp_path / "device", extra_config="MaxStartups 1:100:1") as server:
        # The server counts the connection that tested its start until that one is closed.
        while (other := socket.create_connection(("127.0.0.1", server.port))).recv(4) != b"SSH-":
            other.close()
        threading.Timer(0.8, other.close).start()
        connects(address_of(server))


@pytest.mark.parametrize(
    ("extra", "offers"),
    [
        ("KexAlgorithms sntrup761x25519-sha512@openssh.com", "sntrup761x25519-sha512@openssh.com"),
        ("KexAlgorithms diffie-hellman-group14-sha1", "diffie-hellman-group14-sha1"),
        ("Ciphers chacha20-poly1305@openssh.com", "chacha20-poly1305@openssh.com"),
    ],
)
def test_nothing_in_common_is_told_with_what_the_server_offers(tmp_path: Path, extra: str, offers: str) -> None:
    with (
        PrivateSshd(tmp_path / "device", extra_config=extra) as server,
        pytest.raises(HostUnreachable, match=f"the server offers only {offers}$"),
    ):
        SshTransport(address_of(server))


def test_an_old_server(tmp_path: Path) -> None:
    extra = "KexAlgorithms diffie-hellman-group14-sha256\nCiphers aes256-ctr\nMACs hmac-sha1"
    with PrivateSshd(tmp_path / "device", extra_config=extra) as server:
        connects(address_of(server))


def device_at(server: PrivateSshd) -> Target:
    known = {name: getattr(server, name) for name in ("host", "port", "user", "identity_file", "known_hosts")}
    fields = {"name": "pi5", "profile": "local", "python": sys.executable, "install_root": str(server.root)}
    return Target.model_validate(known | fields)


def works(device: Device) -> bool:
    return bool(device.ask(ListReleases()).releases == ())


def test_files_without_openssh_extensions(tmp_path: Path) -> None:
    extra = "Subsystem sftp internal-sftp -P posix-rename,statvfs,fstatvfs,hardlink,fsync,limits"
    with PrivateSshd(tmp_path / "device", extra_config=extra) as server, connect(device_at(server)) as device:
        assert works(device)


def test_a_server_for_files_alone(tmp_path: Path) -> None:
    with PrivateSshd(tmp_path / "device", extra_config="ForceCommand internal-sftp") as server:
        with closing(SshTransport(address_of(server))) as transport:
            assert transport.size("no-such-file") is None
        with pytest.raises(DeviceError), connect(device_at(server)) as device:
            works(device)


# --- shells ---


SHIM = """#!/bin/sh
case "$SSH_ORIGINAL_COMMAND" in *sftp-server) ;; *) echo Welcome! ;; esac
exec "$(cat {chosen})" -c "$SSH_ORIGINAL_COMMAND"
"""


@pytest.fixture(scope="module")
def any_shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrivateSshd, Path]]:
    """A server that runs its commands in the shell that a file names, as sshd does in a login shell."""
    folder = tmp_path_factory.mktemp("shells")
    shim, chosen = folder / "shim", folder / "chosen"
    shim.write_text(SHIM.format(chosen=chosen))
    shim.chmod(0o755)
    extra = f"ForceCommand {shim}\nSubsystem sftp /usr/lib/openssh/sftp-server"
    with PrivateSshd(folder / "device", extra_config=extra) as running:
        yield running, chosen


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh", "fish", "tcsh"])
def test_login_shells(any_shell: tuple[PrivateSshd, Path], shell: str) -> None:
    """Each shell prints a welcome before the command's output."""
    if not IN_CI and shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    server, chosen = any_shell
    chosen.write_text(shell)
    words = ["two words", "it's", '"hi"', "$HOME", "`id`", "a;b&c|d", "*", "~", "b\\s", "[x]{a,b}", "#", "äö €"]
    with closing(SshTransport(address_of(server))) as transport:
        process = transport.start([sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", *words])
        noise, line = process.lines()
        assert (noise, json.loads(line)) == (b"Welcome!", words)
        assert transport.start(["sh", "-c", "exit 7"]).wait() == 7
    with connect(device_at(server)) as device:
        assert works(device)


def test_a_login_shell_that_prints_before_sftp(tmp_path: Path) -> None:
    shim = tmp_path / "shim"
    shim.write_text('#!/bin/sh\nprintf "Welcome to the board"\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    shim.chmod(0o755)
    extra = f"ForceCommand {shim}\nSubsystem sftp /usr/lib/openssh/sftp-server"
    with PrivateSshd(tmp_path / "device", extra_config=extra) as server:
        refused = pytest.raises(RemoteCommandFailed, match="offers no SFTP session")
        with closing(SshTransport(address_of(server))) as transport, refused as error:
            transport.size("x")
        assert "must print nothing" in (error.value.hint or "")


# --- more than one factor ---


@pytest.fixture
def pam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """PAM's rules for an sshd of another name: the password is `open sesame`. Returns that sshd."""
    check = tmp_path / "check"
    check.write_text("#!/bin/sh\ntr -d '\\0' | grep -qx 'open sesame'\n")
    check.chmod(0o755)
    name = f"edgephi-test-{os.getpid()}"
    rules = Path("/etc/pam.d") / name
    rules.write_text(
        f"auth required pam_exec.so expose_authtok quiet {check}\nauth required pam_permit.so\n"
        "account required pam_permit.so\nsession required pam_permit.so\n"
    )
    program = tmp_path / name
    program.symlink_to(find_sshd() or "sshd")
    monkeypatch.setattr(sshd_module, "find_sshd", lambda: program)
    yield program
    rules.unlink()


class Person:
    """A person who gives the prepared answers, and remembers the questions."""

    def __init__(self, *answers: str, pause_s: float = 0.0) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)
        self._pause_s = pause_s

    def __call__(self, text: str) -> str:
        assert threading.current_thread() is threading.main_thread(), "Ctrl-C is heard there alone"
        self.asked.append(text)
        time.sleep(self._pause_s)
        return self._answers.pop(0)


PAM = "UsePAM yes\nPermitRootLogin yes\nKbdInteractiveAuthentication yes\n"


@needs_root
@pytest.mark.parametrize("methods", ["publickey,keyboard-interactive", "keyboard-interactive", "password"])
def test_a_question_of_pam(pam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods: str) -> None:
    """The person takes longer to answer than the link may be silent."""
    monkeypatch.setattr(ssh_link, "KEEPALIVE_S", 0.2)
    monkeypatch.setattr(ssh_link, "SILENCE_S", 0.6)
    extra = f"{PAM}PasswordAuthentication yes\nAuthenticationMethods {methods}"
    with PrivateSshd(tmp_path / "device", extra_config=extra) as server:
        person = Person("open sesame", pause_s=1.5)
        with closing(SshTransport(address_of(server), person)) as transport:
            assert transport.start(["true"]).wait() == 0
        where = f"pi5 (127.0.0.1:{server.port})"
        question = f"password of {server.user} on {where}: " if methods == "password" else f"{where}: Password: "
        assert person.asked == [question]


@needs_root
def test_a_wrong_answer_is_asked_for_once(pam: Path, tmp_path: Path) -> None:
    with PrivateSshd(tmp_path / "device", extra_config=f"{PAM}AuthenticationMethods keyboard-interactive") as server:
        person = Person("wrong", "wrong", "wrong")
        with pytest.raises(AuthFailed, match="tried keyboard-interactive"):
            SshTransport(address_of(server), person)
        assert len(person.asked) <= 3


@needs_root
def test_nobody_to_ask(pam: Path, tmp_path: Path) -> None:
    with (
        PrivateSshd(tmp_path / "device", extra_config=f"{PAM}AuthenticationMethods keyboard-interactive") as server,
        pytest.raises(AuthFailed) as error,
    ):
        SshTransport(address_of(server))
    assert "start it in a terminal" in (error.value.hint or "")
