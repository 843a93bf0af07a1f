"""Property-based tests of everything here that reads what a server, an ssh or a file of others says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tests.support.servers import Address
from tests.support.untrusted_inputs import held, lines
from toolkit.device.account import _refusal
from toolkit.device.shells import shell_of
from toolkit.device.ssh import config as ssh_config
from toolkit.device.ssh.banners import Banners
from toolkit.device.ssh.certificates import certified_key, host_certificate_fault, public_part, read_blob
from toolkit.device.ssh.config import SshOptions, parse_ssh_g, resolve, ssh_options
from toolkit.device.ssh.keywords import KEYWORDS
from toolkit.device.ssh.known_hosts import read_known_hosts
from toolkit.device.ssh.words import causes, host_key_refusal
from toolkit.errors import DeviceError
from toolkit.events import Event, Step, listening

pytestmark = pytest.mark.usefixtures("config")
TARGET = Address("pi5", "pi")
KEYWORD = st.sampled_from([keyword.name for keyword in KEYWORDS.values() if keyword.name != "Match"])
SETTING = (
    "Port 22 ProxyJump a,b ProxyCommand ssh %h IdentityFile ~/%d/%u/${HOME} UserKnownHostsFile none ConnectTimeout 9"
)
KNOWN = "|1|c2FsdA==|aGFzaA== [pi]:22,*,!pi? @revoked @cert-authority ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 # comment"
SSH_SAID = (
    "Host key ED25519 SHA256:abc revoked by file /x\nHost key verification failed. Permission denied (publickey). @@@@@"
)
CERTIFICATE = "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29t comment"


@given(lines(SETTING))
def test_what_ssh_prints(said: bytes) -> None:
    values = parse_ssh_g(said.decode(errors="surrogateescape"))
    found = held(lambda: ssh_options("pi", TARGET, None, values, {}))
    assert isinstance(found, SshOptions | Exception)


@given(st.lists(st.tuples(KEYWORD, lines("yes no none 22 a,b %h \" ' ~/x SHA256")), max_size=6))
def test_a_configuration_without_an_ssh(tmp_path: Path, settings: list[tuple[str, bytes]]) -> None:
    """paramiko's reader takes what ssh would refuse."""
    file = tmp_path / "ssh_config"
    file.write_bytes(b"\n".join(name.encode() + b" " + value for name, value in settings))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ssh_config.shutil, "which", lambda _: None)
        held(lambda: resolve(TARGET))


@given(lines(KNOWN))
def test_known_hosts(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(content)
    for key in held(lambda: read_known_hosts([file])):
        assert key.names("[pi]:22") in (True, False)


@given(lines(SSH_SAID))
def test_the_words_of_ssh(said: bytes) -> None:
    text = said.decode(errors="replace")
    assert len(held(lambda: causes(text))) <= 8
    assert isinstance(host_key_refusal("pi5", text), DeviceError | None)
    assert isinstance(_refusal("pi5", text, 1), DeviceError)


@given(st.lists(lines("Visit https://login.example/a \x1b[31m \x9b2J \u202egnp"), max_size=8))
def test_banners(said: list[bytes]) -> None:
    heard: list[Event] = []
    banners = Banners("pi5")
    with listening(heard.append):
        for text in said:
            banners.hear(text.decode(errors="replace"))
            banners.show()
    texts = [event.text for event in heard if isinstance(event, Step)]
    assert len(texts) <= 64 and all(text.isprintable() for text in texts)


@given(lines("edgephi-shell:Windows_NT:C:/x edgephi-shell: $PSHOME"))
def test_the_answer_of_a_shell(said: bytes) -> None:
    assert shell_of(said.decode(errors="replace")) in ("posix", "cmd", "powershell")


@given(lines(CERTIFICATE), st.binary(max_size=200))
def test_keys_and_certificates(tmp_path: Path, content: bytes, blob: bytes) -> None:
    file = tmp_path / "key.pub"
    file.write_bytes(content)
    for each in (held(lambda: read_blob(file)) or b"", blob):
        held(lambda each=each: certified_key(each))
        assert host_certificate_fault(each, ["pi"], [blob], ["ssh-ed25519"]) is not None
    held(lambda: public_part(content.decode(errors="replace")))
