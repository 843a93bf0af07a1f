"""Jump hosts whose keys are unknown, changed or revoked: the error names the hop, and `targets trust` accepts it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.servers import needs_sshd
from tests.support.targets import write_target
from toolkit.catalog import load_target
from toolkit.catalog.public_key import fingerprint
from toolkit.cli import main, render
from toolkit.device import open_transport
from toolkit.device.ssh.known_hosts import read_known_hosts
from toolkit.emulate import PrivateSshd
from toolkit.emulate.sshd import free_port, write_key_pair

pytestmark = needs_sshd


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[PrivateSshd]]:
    """Two jump hosts and the target, each with a host key of its own."""
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(name) for name in ("first", "second", "inner")]
        yield [stack.enter_context(PrivateSshd(folder / "device")) for folder in folders]


@dataclass
class Way:
    """A way over jump hosts to `inner`; `known` are the known_hosts files of the hops and the target, in order."""

    known: list[Path]
    servers: list[PrivateSshd]
    config: Path

    def forget(self, number: int) -> None:
        self.known[number].write_text("")

    def replace(self, number: int, folder: Path) -> None:
        public = write_key_pair(folder / "another")
        self.known[number].write_text(f"[127.0.0.1]:{self.servers[number].port} {public}\n")

    def fingerprint(self, number: int) -> str:
        (key,) = read_known_hosts([self.servers[number].known_hosts])
        return fingerprint(key.blob)


def way(servers: list[PrivateSshd], config: Path, tmp_path: Path, settings: str, client: str = "ssh") -> Way:
    known = []
    hosts = []
    for name, server in zip(("first", "second", "inner"), servers, strict=True):
        known.append(tmp_path / f"known-{name}")
        shutil.copy(server.known_hosts, known[-1])
        hosts.append(
            f"Host {name}\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n"
            f"  IdentityFile {server.identity_file}\n  UserKnownHostsFile {known[-1]}\n"
        )
    config.write_text(f"Host inner\n  {settings}\n" + "".join(hosts) + "Host *\n  GlobalKnownHostsFile none\n")
    blank = {"port": None, "user": None, "identity_file": None, "known_hosts": None}
    write_target(tmp_path, servers[-1], host="inner", transport=client, **blank)
    return Way(known, servers, config)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    told = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((told.out + told.err).split())


ONE, TWO = "ProxyJump second", "ProxyJump first,second"
COMMAND = "ProxyCommand ssh -F {config} -o BatchMode=yes -W %h:%p second"


@pytest.mark.parametrize("client", ["ssh", "openssh"])
@pytest.mark.parametrize(
    ("settings", "number", "name"),
    [
        (ONE, 1, "jump host second"),
        (COMMAND, 1, "jump host second"),
        (TWO, 0, "jump host 1 of 2, first"),
        (TWO, 1, "jump host 2 of 2, second"),
    ],
)
def test_an_unknown_key_of_a_jump_host(
    servers: list[PrivateSshd],
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    client: str,
    settings: str,
    number: int,
    name: str,
) -> None:
    there = way(servers, config, tmp_path, settings.format(config=config), client)
    there.forget(number)
    code, said = run(capsys, "targets", "probe", "pi5")
    address = f"127.0.0.1:{servers[number].port}"
    assert code == 7
    assert f"error: pi5: {name} ({address}): unknown host key ssh-ed25519 {there.fingerprint(number)}" in said
    assert f"then: edgephi targets trust pi5 {there.fingerprint(number)}" in said
    code, said = run(capsys, "targets", "trust", "pi5", there.fingerprint(number))
    assert (code, said) == (0, f"pi5: the key is now in {there.known[number]}")
    assert run(capsys, "targets", "probe", "pi5")[0] == 0


@pytest.mark.parametrize("client", ["ssh", "openssh"])
@pytest.mark.parametrize(("settings", "number"), [(ONE, 1), (TWO, 0), (TWO, 1)])
def test_a_changed_key_of_a_jump_host(
    servers: list[PrivateSshd],
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    client: str,
    settings: str,
    number: int,
) -> None:
    there = way(servers, config, tmp_path, settings, client)
    there.replace(number, tmp_path)
    code, said = run(capsys, "targets", "probe", "pi5")
    assert code == 7
    assert f"(127.0.0.1:{servers[number].port}): the host key has changed: {there.known[number]}:1 has" in said
    assert "error: pi5: jump host" in said
    code, said = run(capsys, "targets", "trust", "pi5", there.fingerprint(number))
    assert code == 7 and "the host key has changed" in said


def test_a_revoked_key_of_a_jump_host(
    servers: list[PrivateSshd], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    way(servers, config, tmp_path, ONE)
    (tmp_path / "revoked").write_text(servers[1].known_hosts.read_text().split(" ", 1)[1])
    config.write_text(f"Match originalhost second\n  RevokedHostKeys {tmp_path}/revoked\n{config.read_text()}")
    code, said = run(capsys, "targets", "probe", "pi5")
    assert code == 7
    assert "on the way: ssh refuses the host key: Host key ED25519 SHA256:" in said
    assert f"revoked by file {tmp_path}/revoked" in said


def test_the_targets_own_key_behind_a_jump_host(
    servers: list[PrivateSshd], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = way(servers, config, tmp_path, TWO)
    there.forget(2)
    code, said = run(capsys, "targets", "probe", "pi5")
    assert code == 7
    assert f"error: pi5 (127.0.0.1:{servers[2].port}): unknown host key ssh-ed25519" in said


def test_a_jump_host_that_is_off(
    servers: list[PrivateSshd], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    way(servers, config, tmp_path, TWO)
    config.write_text(config.read_text().replace(f"Port {servers[0].port}", f"Port {port}"))
    code, said = run(capsys, "targets", "probe", "pi5")
    assert code == 7
    assert f"error: pi5: jump host 1 of 2, first (127.0.0.1:{port}): connection refused" in said


def test_a_jump_host_that_refuses_the_login(
    servers: list[PrivateSshd], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_key_pair(tmp_path / "stranger")
    way(servers, config, tmp_path, TWO)
    first = f"IdentityFile {servers[0].identity_file}"
    config.write_text(config.read_text().replace(first, f"IdentityFile {tmp_path}/stranger"))
    code, said = run(capsys, "targets", "probe", "pi5")
    assert code == 7
    assert f"no way through the proxy: {servers[0].user}@127.0.0.1: Permission denied (publickey)." in said


def test_trust_walks_the_way_and_asks_at_each_unknown_key(
    servers: list[PrivateSshd],
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = way(servers, config, tmp_path, TWO)
    for number in range(3):
        there.forget(number)
    asked: list[str] = []
    monkeypatch.setattr(render, "note", asked.append)
    monkeypatch.setattr(render, "confirm", lambda _: True)
    assert run(capsys, "targets", "trust", "pi5")[0] == 0
    assert [there.fingerprint(number) in question for number, question in enumerate(asked)] == [True] * 3
    assert [question.split(" (")[0] for question in asked] == [
        "pi5: jump host 1 of 2, first",
        "pi5: jump host 2 of 2, second",
        "pi5",
    ]
    with closing(open_transport(load_target("pi5"))) as transport:
        assert transport.start(["true"]).wait() == 0
    code, said = run(capsys, "targets", "trust", "pi5")
    assert (code, said) == (0, "pi5: every host key on the way is known already")


def test_nobody_accepts_a_key(
    servers: list[PrivateSshd], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no terminal to ask at."""
    there = way(servers, config, tmp_path, ONE)
    there.forget(1)
    code, said = run(capsys, "targets", "trust", "pi5")
    assert code == 7
    assert f"unknown host key ssh-ed25519 {there.fingerprint(1)}: not accepted" in said
    assert f"edgephi targets trust pi5 {there.fingerprint(1)} accepts it without a question" in said
    assert there.known[1].read_text() == ""
