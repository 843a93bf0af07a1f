"""Features of OpenSSH's client: the decisions left to it, its failures, and its end without remains."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.paths import REPO
from tests.support.servers import Address, Relay, address_of, needs_sshd
from toolkit.catalog import Target
from toolkit.catalog.public_key import fingerprint
from toolkit.device import Transport
from toolkit.device.dial import open_another
from toolkit.device.ssh.client import SshTransport
from toolkit.device.ssh.known_hosts import read_known_hosts
from toolkit.device.ssh.openssh import OpenSshTransport
from toolkit.emulate import PrivateSshd
from toolkit.emulate.sshd import write_key_pair
from toolkit.errors import (
    AuthFailed,
    ConfigError,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    RemoteCommandFailed,
)

pytestmark = needs_sshd


@pytest.fixture
def address(sshd: PrivateSshd, tmp_path: Path) -> Address:
    """The server with the test's own known_hosts file, in a folder whose name ssh would split."""
    known = tmp_path / "with blanks and %h" / "known_hosts"
    known.parent.mkdir()
    known.write_text(sshd.known_hosts.read_text())
    return address_of(sshd, known_hosts=known)


def known_file(address: Address) -> Path:
    assert address.known_hosts is not None
    return address.known_hosts


def test_unknown_host_key_is_refused_in_our_words(address: Address, sshd: PrivateSshd) -> None:
    (key,) = read_known_hosts([sshd.known_hosts])
    known_file(address).write_text("")
    with pytest.raises(
        HostKeyUnknown, match=re.escape(f"unknown host key ssh-ed25519 {fingerprint(key.blob)}")
    ) as caught:
        OpenSshTransport(address)
    assert "edgephi targets trust pi5 SHA256:" in (caught.value.hint or "")
    assert known_file(address).read_text() == ""


def test_changed_host_key(address: Address, tmp_path: Path) -> None:
    public = write_key_pair(tmp_path / "other")
    known_file(address).write_text(f"[127.0.0.1]:{address.port} {public}\n")
    with pytest.raises(HostKeyChanged, match="the host key has changed: "):
        OpenSshTransport(address)


def test_revoked_host_key(address: Address) -> None:
    known = known_file(address)
    known.write_text(f"{known.read_text()}@revoked {known.read_text()}")
    with pytest.raises(HostKeyChanged, match="known_hosts:2"):
        OpenSshTransport(address)


def test_a_matching_key_under_the_name_without_port_is_enough(address: Address) -> None:
    known = known_file(address)
    known.write_text(known.read_text().replace(f"[127.0.0.1]:{address.port}", "127.0.0.1"))
    OpenSshTransport(address).close()


def test_wrong_key(address: Address, tmp_path: Path) -> None:
    write_key_pair(tmp_path / "wrong")
    with pytest.raises(AuthFailed, match=f"ssh can't log in as '{address.user}' without asking: ") as caught:
        OpenSshTransport(replace(address, identity_file=tmp_path / "wrong"))
    assert "ssh-add" in (caught.value.hint or "")


def test_a_key_with_a_passphrase_is_not_asked_for(address: Address, tmp_path: Path) -> None:
    assert address.identity_file is not None
    key = tmp_path / "locked"
    key.touch(mode=0o600)
    key.write_bytes(address.identity_file.read_bytes())
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", key], check=True, capture_output=True)
    with pytest.raises(AuthFailed, match="without asking"):
        OpenSshTransport(replace(address, identity_file=key))


def test_nobody_listens(address: Address) -> None:
    relay = Relay(0)
    relay.cut()
    with pytest.raises(HostUnreachable, match=rf"pi5 \(127\.0\.0\.1:{relay.port}\): connection refused"):
        OpenSshTransport(replace(address, port=relay.port))


def test_no_client_on_this_machine(address: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="transport openssh: the OpenSSH client isn't installed") as caught:
        OpenSshTransport(address)
    assert "openssh-client" in (caught.value.hint or "")


def test_a_further_connection_is_ssh_where_the_target_leaves_the_choice(
    address: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fields = {"host": address.host, "port": address.port, "user": address.user, "profile": "local"}
    target = Target(name="pi5", identity_file=address.identity_file, known_hosts=address.known_hosts, **fields)

    def kind(transport: str) -> type[Transport]:
        with closing(open_another(target.model_copy(update={"transport": transport}))) as another:
            return type(another)

    assert (kind("ssh"), kind("openssh"), kind("paramiko")) == (OpenSshTransport, OpenSshTransport, SshTransport)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kind("ssh") is SshTransport


def test_what_the_configuration_would_do_on_the_side_stays_out(
    address: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"LocalCommand touch {tmp_path}/trace\nPermitLocalCommand yes\nRemoteCommand false\nRequestTTY force\n"
        f"LocalForward 127.0.0.1:{address.port} 127.0.0.1:1\nControlMaster auto\nControlPath {tmp_path}/theirs\n"
    )
    monkeypatch.setenv("EDGEPHI_SSH_CONFIG", str(config))
    with closing(OpenSshTransport(address)) as transport:
        process = transport.start(["tty"])
        assert list(process.lines()) == [b"not a tty"]
    assert not (tmp_path / "trace").exists() and not (tmp_path / "theirs").exists()


def test_a_transfer_tells_that_ssh_was_killed(address: Address, sshd: PrivateSshd, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(64 << 20))
    with closing(OpenSshTransport(address)) as transport:
        steps = transport.put(source, str(sshd.root / "killed.part"))
        next(steps)
        os.kill(transport._child.pid, signal.SIGKILL)
        with pytest.raises(HostUnreachable, match="lost while writing"):
            list(steps)


def test_a_refusal_of_the_server_is_worded(address: Address, tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    with closing(OpenSshTransport(address)) as transport:
        with pytest.raises(RemoteCommandFailed, match=r"writing /dev/null/none failed: "):
            list(transport.put(tmp_path / "source", "/dev/null/none"))
        assert transport.start(["true"]).wait() == 0


def test_nothing_stays_behind(address: Address) -> None:
    transport = OpenSshTransport(address)
    folder, pid = transport._folder, transport._child.pid
    assert folder.stat().st_mode & 0o777 == 0o700
    sleeping = transport.start(["sleep", "60"])
    transport.close()
    with pytest.raises(HostUnreachable):
        sleeping.wait()
    assert not folder.exists() and not Path(f"/proc/{pid}").exists()


ABANDONED = """
import os, sys
from tests.support.servers import Address
from toolkit.device.ssh.openssh import OpenSshTransport
transport = OpenSshTransport(Address("pi5", "127.0.0.1", sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]))
sleeping = transport.start(["cat"])
print(transport._child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_ssh_ends_with_a_process_that_is_killed(address: Address) -> None:
    arguments = [str(address.user), str(address.port), str(address.identity_file), str(address.known_hosts)]
    command = [sys.executable, "-c", ABANDONED, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, cwd=REPO)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{int(done.stdout)}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
