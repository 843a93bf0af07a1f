from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.cli import main
from toolkit.config import config_dir
from toolkit.emulate import EmbeddedServer
from toolkit.emulate.sshd import free_port


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *argv])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedServer]:
    config = tmp_path / "ssh_config"
    config.write_text("IdentityFile none\n")
    monkeypatch.setenv("EDGEPHI_SSH_CONFIG", str(config))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with EmbeddedServer(tmp_path / "device") as running:
        yield running


def write_target(server: EmbeddedServer, **changes: object) -> None:
    facts = {"host": server.host, "port": server.port, "user": server.user, "profile": "local"}
    facts |= {"identity_file": str(server.identity_file), "known_hosts": str(server.known_hosts)} | changes
    folder = config_dir() / "targets"
    folder.mkdir(parents=True)
    (folder / "pi5.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in facts.items()))


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("ok       python          3.")
    assert any(line.startswith("ok       recipes         24 files") for line in lines)
    assert err.startswith("this machine: ") and err.endswith(" 0 skipped\n")


def test_this_machine_with_a_broken_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("profiles").mkdir()
    for name in ("bad", "worse"):
        Path(f"profiles/{name}.toml").write_text('schema_version = 1\nextends = "local"\nstatsu = "x"\n')
    assert run() == 3
    out, err = capsys.readouterr()
    _, _, about = out.partition("failed   profiles        ")
    assert about.splitlines()[:3] == [
        "profiles/bad.toml: statsu: unknown key (did you mean 'status'?)",
        f"{'':<25}profiles/worse.toml: statsu: unknown key (did you mean 'status'?)",
        f"{'':<25}correct or delete the file; an editor checks it by docs/schema",
    ]
    assert ", 1 failed, " in err


def test_a_target(server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    write_target(server)
    assert run("pi5") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"ok       target          {server.user}@127.0.0.1, port {server.port}, profile local\n")
    assert out.splitlines()[-1] == "skipped  active release  nothing is active"
    assert err.startswith("pi5: ") and ", 0 failed, " in err


def test_a_target_that_is_off_says_what_to_type(server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    write_target(server, port=port)
    assert run("pi5") == 7
    out = capsys.readouterr().out
    assert (
        f"failed   port            pi5 (127.0.0.1:{port}): connection refused\n"
        f"{'':<25}does sshd run there, on port {port}? On the device: sudo systemctl enable --now ssh\n"
        "skipped  host key        not looked at: port failed\n"
    ) in out


def test_json(server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    write_target(server, known_hosts=str(Path("none").absolute()))
    assert run("pi5", "--json") == 7
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["target"], told["passed"], err) == ("pi5", False, "")
    (wrong,) = [check for check in told["checks"] if check["state"] == "failed"]
    assert wrong.keys() == {"name", "state", "seen", "hint"}
    assert wrong["name"] == "host key"
    assert "edgephi targets trust pi5 SHA256:" in wrong["hint"]


def test_json_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["target"], told["passed"]) == (None, True)


def test_an_unknown_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pi6") == 3
    out = capsys.readouterr().out
    assert out.startswith("failed   target          unknown target 'pi6'\n")
    assert "edgephi targets list shows them" in out
