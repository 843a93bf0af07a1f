from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.servers import Address
from toolkit.device.ssh.client import SshTransport
from toolkit.device.ssh.config import OpenSshNeeded, resolve
from toolkit.device.ssh.keywords import KEYWORDS, SWITCHED_OFF, for_openssh_alone
from toolkit.errors import ConfigError

MANUAL = Path("/usr/share/man/man5/ssh_config.5.gz")
needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs openssh-client")


@needs_ssh
def test_every_keyword_that_ssh_prints_is_in_the_table() -> None:
    printed = subprocess.run(
        ["ssh", "-G", "localhost"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    ).stdout
    assert {line.split(" ", 1)[0].lower() for line in printed.splitlines()} <= KEYWORDS.keys()


@pytest.mark.skipif(not MANUAL.exists(), reason="needs the manual of ssh_config")
def test_every_keyword_of_the_manual_is_in_the_table() -> None:
    manual = gzip.decompress(MANUAL.read_bytes()).decode()
    named = re.findall(r"^\.It Cm (\w+)$", manual.split(".Sh DESCRIPTION")[1].split(".Sh PATTERNS")[0], re.MULTILINE)
    keywords = {name for name in named if name[0].isupper()}
    assert len(keywords) > 80
    assert {name.lower() for name in keywords} <= KEYWORDS.keys()


def test_what_is_switched_off_has_no_effect_on_us() -> None:
    for name in SWITCHED_OFF:
        assert KEYWORDS[name.lower()].treatment in ("without effect", "honoured")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"newkeyword": ["yes"]}, ()),
        ({"newkeyword": ["no"]}, ("newkeyword",)),
        ({"unheardof": ["x"]}, ("unheardof",)),
        ({"checkhostip": ["no"]}, ()),
        ({"checkhostip": ["yes"]}, ("CheckHostIP",)),
        ({"revokedhostkeys": ["none"]}, ()),
        ({"revokedhostkeys": ["/etc/ssh/revoked"]}, ("RevokedHostKeys",)),
        ({"compression": ["yes"]}, ()),
        ({"requiredrsasize": ["1024"]}, ()),
        ({"requiredrsasize": ["4096"]}, ("RequiredRSASize",)),
    ],
)
def test_the_keywords_for_openssh_alone(values: dict[str, list[str]], found: tuple[str, ...]) -> None:
    assert for_openssh_alone(values, {"newkeyword": ["yes"], "requiredrsasize": ["1024"]}) == found


@pytest.mark.parametrize("with_ssh", [pytest.param(True, marks=needs_ssh), False])
def test_our_client_refuses_what_only_ssh_heeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_ssh: bool
) -> None:
    if not with_ssh:
        monkeypatch.setattr("shutil.which", lambda _: None)
    (tmp_path / "ssh_config").write_text("Host pi\n  RevokedHostKeys /etc/revoked\n  CheckHostIP yes\n")
    with pytest.raises(OpenSshNeeded, match=r"^target 'pi5': only OpenSSH's client heeds ") as caught:
        SshTransport(Address("pi5", "pi"))
    assert "RevokedHostKeys" in caught.value.message and "CheckHostIP" in caught.value.message
    assert "set openssh" in (caught.value.hint or "")


def test_a_keyword_that_nobody_knows_is_not_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ssh of the future prints a keyword that this table lacks."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\necho hostname pi\ncase "$*" in *none*) echo future no;; *) echo future yes;; esac\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert resolve(Address("pi5", "pi")).only_openssh == ("future",)


@pytest.mark.parametrize("token", ["%C", "%i", "${NO_SUCH_VARIABLE}"])
@needs_ssh
def test_a_token_that_only_ssh_fills_in(tmp_path: Path, token: str) -> None:
    (tmp_path / "ssh_config").write_text(f"IdentityFile {tmp_path}/{token}\n")
    assert resolve(Address("pi5", "pi")).only_openssh == ("the token in IdentityFile",)


def test_without_an_ssh_nothing_follows_include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    (tmp_path / "ssh_config").write_text(f"Include {tmp_path}/more\n")
    with pytest.raises(ConfigError, match="nothing follows Include"):
        resolve(Address("pi5", "pi"))
