"""bundle sign, bundle verify, targets signers, and every way a bundle comes to a target, as typed."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.builds import seed_cache
from tests.support.commands import edgephi
from tests.support.keys import make_key
from toolkit.bundle import Bundle

NAME = "phi3-nano-int4-rtn-b32"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SSH_AUTH_SOCK", "DISPLAY", "SSH_ASKPASS"):
        monkeypatch.delenv(name, raising=False)
    return make_key(Path.home() / ".ssh" / "id_ed25519")


@pytest.fixture
def stored(tmp_path: Path, key: Path) -> Bundle:
    return seed_cache(tmp_path / "cache", "int4-rtn-b32")


@pytest.fixture
def demanding(local: Path, stored: Bundle, key: Path) -> Path:
    """Target `local`, which takes only bundles that `key` has signed; returns its install root."""
    done = edgephi("targets", "signers", "add", "local", "me@here", f"{key}.pub")
    assert done.returncode == 0, done.stderr
    return local


def test_signing_and_verifying(stored: Bundle, key: Path) -> None:
    assert "it isn't signed" in edgephi("bundle", "verify", NAME).stderr
    done = edgephi("bundle", "sign", NAME)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{NAME} ({stored.id[:12]}): signed with ED25519 SHA256:")
    done = edgephi("bundle", "verify", NAME)
    assert done.returncode == 0 and ".sig: a right signature, made with ED25519 SHA256:" in done.stderr
    other = make_key(key.with_name("other"))
    made = json.loads(edgephi("bundle", "sign", NAME, "--key", str(other), "--json").stdout)["signature"]
    assert made["valid"] and made["reason"] is None
    found = json.loads(edgephi("bundle", "verify", NAME, "--json").stdout)
    assert len(found["signatures"]) == 2 and made in found["signatures"]


def test_a_wrong_signature_ends_with_9(stored: Bundle, tmp_path: Path) -> None:
    assert edgephi("bundle", "sign", NAME).returncode == 0
    folder = tmp_path / "cache" / "bundles" / stored.id / "signatures"
    (signature,) = folder.iterdir()
    lines = signature.read_text().splitlines()
    lines[-2] = lines[-2][::-1]
    signature.unlink()
    signature.write_text("\n".join(lines) + "\n")
    done = edgephi("bundle", "verify", NAME)
    assert done.returncode == 9
    assert f"{signature.name}: " in done.stderr and "have the bundle signed again" in done.stderr


def test_signers_as_typed(local: Path, key: Path) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return edgephi("targets", "signers", *args)

    assert "local takes unsigned bundles" in run("list", "local").stderr
    assert json.loads(run("list", "local", "--json").stdout) == {"target": "local", "demanded": False, "signers": []}
    added = json.loads(run("add", "local", "me@here", f"{key}.pub", "--json").stdout)
    listed = json.loads(run("list", "local", "--json").stdout)
    assert listed["demanded"] and listed["signers"][0]["fingerprint"] == added["fingerprint"]
    assert added["fingerprint"] in run("list", "local").stdout
    assert run("add", "local", "me@here", str(key)).returncode == 3
    removed = run("remove", "local", added["fingerprint"])
    assert removed.returncode == 0 and "it takes no bundle" in removed.stderr
    assert "nobody may sign" in run("list", "local").stderr


def test_an_unsigned_bundle_goes_nowhere(demanding: Path, stored: Bundle) -> None:
    for args in (
        ["deploy", NAME, "local"],
        ["deploy", NAME, "local", "--gate"],
        ["deploy", NAME, "local", "@all"],
        ["bench", NAME, "-w", "quick"],
        ["run", "phi3-nano", "local", "-r", "int4-rtn-b32", "-w", "quick"],
        ["bundle", "verify", NAME, "--target", "local"],
    ):
        done = edgephi(*args)
        assert done.returncode == 9, (args, done.stderr)
        assert f"local: {NAME} ({stored.id[:12]}) isn't signed" in done.stderr
        assert f"hint: edgephi bundle sign {stored.id[:12]}" in done.stderr
    assert not (demanding / "releases").exists() and not (demanding / "blobs").exists()
    done = edgephi("tune", "phi3-nano", "local", "--trials", "1")
    assert done.returncode == 9 and "takes only signed bundles" in done.stderr


def test_signed_it_is_deployed_until_its_signer_is_gone(demanding: Path, stored: Bundle, key: Path) -> None:
    assert edgephi("bundle", "sign", NAME).returncode == 0
    assert edgephi("bundle", "verify", NAME, "--target", "local").returncode == 0
    done = edgephi("deploy", NAME, "local")
    assert done.returncode == 0, done.stderr
    assert f"local: {NAME} is signed by me@here" in done.stderr
    assert edgephi("targets", "signers", "remove", "local", "me@here").returncode == 0
    done = edgephi("deploy", NAME, "local")
    assert done.returncode == 9 and "is no signer's" in done.stderr


def test_replacing_a_target_keeps_its_demand(demanding: Path) -> None:
    add = ("targets", "add", "local", "pi5.local", "--profile", "local", "--force", "--json")
    assert json.loads(edgephi(*add).stdout)["allowed_signers"].endswith("/targets/local.signers")


def test_a_passphrase_is_asked_for_on_the_terminal(stored: Bundle, key: Path) -> None:
    locked = make_key(key.with_name("locked"), passphrase="correct horse")
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "toolkit", "bundle", "sign", NAME, "--key", str(locked)])
    said, answered, deadline = b"", False, time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            try:
                data = os.read(terminal, 4096)
            except OSError:
                break
            said += data
            if not data:
                break
        if b"Enter passphrase" in said and not answered:
            os.write(terminal, b"correct horse\n")
            answered = True
    if not answered:
        os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said
    assert b"signed with ED25519" in said and b"correct horse" not in said
