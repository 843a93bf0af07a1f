from __future__ import annotations

import base64
import stat
import subprocess
from pathlib import Path

import pytest

from toolkit.catalog.public_key import fingerprint
from toolkit.device.ssh.known_hosts import append_known_host, host_names, parse_known_hosts, read_known_hosts
from toolkit.emulate.sshd import write_key_pair

BLOB = base64.b64encode(b"some key").decode()


@pytest.mark.parametrize(
    ("patterns", "host", "expected"),
    [
        ("pi", "pi", True),
        ("pi", "pi2", False),
        ("one,pi,two", "pi", True),
        ("*.lan", "pi.lan", True),
        ("pi?", "pi5", True),
        ("*,!pi", "pi", False),
        ("*,!pi", "pi5", True),
        ("[pi]:2222", "[pi]:2222", True),
        ("[pi]:2222", "pi", False),
        ("[10.0.0.*]:22", "[10.0.0.7]:22", True),
        ("Pi.Local", "pi.local", True),
        ("|1|broken", "pi", False),
        ("|1|!!|??", "pi", False),
    ],
)
def test_patterns(patterns: str, host: str, expected: bool) -> None:
    (key,) = parse_known_hosts(f"{patterns} ssh-ed25519 {BLOB}", Path("known"))
    assert key.names(host) is expected


def test_lines_that_are_no_keys_are_skipped_but_counted() -> None:
    text = f"# comment\n\npi ssh-ed25519\npi ssh-ed25519 not/base64!\n@revoked pi ssh-rsa {BLOB} note\n"
    (key,) = parse_known_hosts(text, Path("known"))
    assert (key.line, key.marker, key.key_type, key.blob) == (5, "@revoked", "ssh-rsa", b"some key")


def test_host_names() -> None:
    assert host_names("Pi.local", 22, None) == ("pi.local",)
    assert host_names("Pi.local", 2222, None) == ("[pi.local]:2222", "pi.local")
    assert host_names("Pi.local", 2222, "alias") == ("alias",)


def test_hashed_entries_and_fingerprints_as_ssh_keygen_writes_them(tmp_path: Path) -> None:
    known = tmp_path / "known"
    public = write_key_pair(tmp_path / "key")
    (tmp_path / "key.pub").write_text(public)
    known.write_text(f"[pi]:2222 {public}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
    (key,) = read_known_hosts([known, tmp_path / "missing"])
    assert key.names("[pi]:2222")
    assert not key.names("pi")
    printed = subprocess.run(["ssh-keygen", "-lf", tmp_path / "key.pub"], check=True, capture_output=True, text=True)
    assert fingerprint(key.blob) in printed.stdout.split()


def test_append_makes_a_private_folder_and_file(tmp_path: Path) -> None:
    file = tmp_path / ".ssh" / "known_hosts"
    append_known_host(file, "pi", "ssh-ed25519", b"one")
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [key.blob for key in read_known_hosts([file])] == [b"one"]


def test_append_after_a_line_without_end(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"pi ssh-rsa {BLOB}")
    append_known_host(file, "pi", "ssh-ed25519", b"two")
    assert [key.blob for key in read_known_hosts([file])] == [b"some key", b"two"]
