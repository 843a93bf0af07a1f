"""Packets that edgephi seals instead of paramiko: the same on the wire with any cipher, new keys and small windows."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import paramiko
import pytest

from tests.support.servers import address_of, needs_sshd
from toolkit.device.ssh import link as ssh_link
from toolkit.device.ssh.client import SshTransport
from toolkit.device.ssh.packets import BurstPacketizer, send_all
from toolkit.emulate import EmbeddedServer, PrivateSshd


def sent_and_compared(server: PrivateSshd | EmbeddedServer, tmp_path: Path, size: int) -> SshTransport:
    """Send a file and compare what arrived; returns the open transport."""
    (tmp_path / "source").write_bytes(os.urandom(size))
    transport = SshTransport(address_of(server))
    list(transport.put(tmp_path / "source", str(server.root / "arrived")))
    assert (server.root / "arrived").read_bytes() == (tmp_path / "source").read_bytes()
    return transport


@needs_sshd
def test_new_keys_in_the_middle(sshd: PrivateSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BurstPacketizer, "REKEY_BYTES", 3_000_000)
    keys: list[object] = []
    set_cipher = BurstPacketizer.set_outbound_cipher

    def watched(self: BurstPacketizer, *args: object, **options: object) -> None:
        keys.append(options["iv_out"])
        set_cipher(self, *args, **options)

    monkeypatch.setattr(BurstPacketizer, "set_outbound_cipher", watched)
    with closing(sent_and_compared(sshd, tmp_path, 20_000_000)) as transport:
        assert transport.start(["true"]).wait() == 0
    assert len(set(keys)) == len(keys) > 3


@needs_sshd
@pytest.mark.parametrize("cipher", ["aes256-gcm@openssh.com", "aes128-ctr"])
def test_other_ciphers(sshd: PrivateSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cipher: str) -> None:
    start = ssh_link._Transport.start_client

    def with_one_cipher(self: ssh_link._Transport, timeout: float) -> None:
        self.get_security_options().ciphers = (cipher,)
        start(self, timeout=timeout)

    monkeypatch.setattr(ssh_link._Transport, "start_client", with_one_cipher)
    with closing(sent_and_compared(sshd, tmp_path, 5_000_000)) as transport:
        assert transport._link.transport.local_cipher == cipher


def test_a_server_with_small_windows_and_packets(
    embedded: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = paramiko.Transport.__init__

    def small(self: object, sock: object, **options: object) -> None:
        sizes = {"default_window_size": 50_000, "default_max_packet_size": 4096}
        make(self, sock, **(options if options else sizes))

    monkeypatch.setattr(paramiko.Transport, "__init__", small)
    with closing(sent_and_compared(embedded, tmp_path, 3_000_000)) as transport:
        channel = transport._sftp.get_channel()
        assert channel.out_max_packet_size == 4096
        channel.close()
        with pytest.raises(OSError, match="socket is closed"):
            send_all(channel, memoryview(b"x"))
