from __future__ import annotations

import json
import platform
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import REPO
from toolkit import localhost
from toolkit.catalog import load_target
from toolkit.catalog.target import target_json_schema
from toolkit.cli import main
from toolkit.config import config_dir, shipped_dir
from toolkit.emulate import EmbeddedServer, PrivateSshd
from toolkit.emulate.sshd import free_port

ADD = ("add", "pi5", "pi@pi5.local", "--profile", "raspberry-pi-5-8gb")


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["targets", *argv])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("argv", [(), ("list",)])
def test_list(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*ADD, "--port", "2222", "--tag", "lab") == 0
    capsys.readouterr()
    assert run(*argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (row,) = [line for line in out.splitlines() if line.strip().startswith("pi5")]
    for cell in ("pi@pi5.local:2222", "raspberry-pi-5-8gb", "~/.edgephi", "lab", "user"):
        assert cell in row
    assert "this machine" in out


def test_list_with_a_broken_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("targets").mkdir()
    Path("targets/bad.toml").write_text('host = "x"\npassword = "hunter2"\n', encoding="utf-8")
    assert run("list", "--json") == 0
    out, err = capsys.readouterr()
    error = "targets/bad.toml: password: edgephi keeps no secrets in files"
    assert [(target["name"], target.get("error")) for target in json.loads(out)] == [
        ("bad", error),
        ("local", None),
    ]
    assert err == f"warning: {error}\n"
    assert run("show", "bad") == 3
    assert "hunter2" not in "".join(capsys.readouterr())
    assert run("remove", "bad") == 0


def test_add(capsys: pytest.CaptureFixture[str]) -> None:
    path = config_dir() / "targets" / "pi5.toml"
    options = (
        "--port",
        "22",
        "--install-root",
        "/opt/phi",
        "--python",
        "python3.12",
        "--tag",
        "a",
        "--tag",
        "b",
    )
    assert run(*ADD, *options, "--identity-file", "key", "--known-hosts", "~/.ssh/lab_hosts") == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"pi5: written to {path}\n", "")
    target = load_target("pi5")
    assert (target.host, target.user, target.port) == ("pi5.local", "pi", 22)
    assert (target.install_root, target.python, target.tags) == ("/opt/phi", "python3.12", ("a", "b"))
    assert target.identity_file == Path.cwd() / "key"
    assert target.known_hosts == Path("~/.ssh/lab_hosts")


def test_add_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("add", "six", "fe80::1%eth0", "--user", "pi", "--profile", "local", "--json") == 0
    added = json.loads(capsys.readouterr().out)
    assert (added["name"], added["host"], added["user"]) == ("six", "fe80::1%eth0", "pi")
    assert added["path"] == str(config_dir() / "targets" / "six.toml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("add", "pi5", "pi5", "--profile", "raspbery-pi-5-8gb"),
            "error: unknown profile 'raspbery-pi-5-8gb' (did you mean 'raspberry-pi-5-8gb'?)\n"
            " hint: edgephi profiles list shows them\n",
        ),
        (
            ("add", "../pi5", "pi5", "--profile", "local"),
            "error: target '../pi5': name: '../pi5' is not a name: letters, digits and . _ - only, at most 64\n",
        ),
        (
            ("add", "pi5.toml", "pi5", "--profile", "local"),
            "error: target 'pi5.toml': name: 'pi5.toml' is the name of a file; leave .toml out\n",
        ),
        (
            ("add", "pi5", "pi5:ssh", "--profile", "local"),
            "error: target 'pi5': host: 'pi5:ssh': the port goes into `port`, not after the host\n",
        ),
        (
            ("add", "pi5", "pi5", "--profile", "local", "--port", "70000"),
            "error: target 'pi5': port: must be less than or equal to 65535, not 70000\n",
        ),
        (("add", "local", "pi5", "--profile", "local"), "error: target 'local' exists already: "),
    ],
)
def test_add_refuses(argv: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert not (config_dir() / "targets").exists()


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("pi5", (None, "pi5", None)),
        ("pi@pi5.local:2222", ("pi", "pi5.local", 2222)),
        ("ssh://pi@pi5:22/", ("pi", "pi5", 22)),
        ("::1", (None, "::1", None)),
        ("[::1]", (None, "::1", None)),
        ("me@corp@[fe80::1%eth0]:2222", ("me@corp", "fe80::1%eth0", 2222)),
    ],
)
def test_add_takes_addresses_apart(address: str, parts: tuple[str | None, str, int | None]) -> None:
    assert run("add", "six", address, "--profile", "local") == 0
    target = load_target("six")
    assert (target.user, target.host, target.port) == parts


def test_add_with_two_ports(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("add", "pi5", "pi5:22", "--port", "22", "--profile", "local") == 2
    assert "give the port once" in capsys.readouterr().err


def test_add_with_two_users(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*ADD, "--user", "root") == 2
    assert "give the user once: USER@HOST or --user" in capsys.readouterr().err


def test_add_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*ADD) == 0
    assert run(*ADD) == 3
    assert capsys.readouterr().err == (
        f"error: target 'pi5' exists already: {config_dir() / 'targets/pi5.toml'}\n hint: --force replaces it\n"
    )
    assert run("add", "pi5", "other", "--profile", "local", "--force") == 0
    assert load_target("pi5").host == "other"


def test_add_under_a_stronger_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("targets").mkdir()
    Path("targets/pi5.toml").write_text('host = "here"\nprofile = "local"\n', encoding="utf-8")
    assert run(*ADD) == 3
    assert run(*ADD, "--force") == 0
    assert "warning: targets/pi5.toml is read instead of " in capsys.readouterr().err
    assert load_target("pi5").host == "here"


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "local") == 0
    assert "transport" in capsys.readouterr().out
    assert run("show", "local", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["transport"], shown["source"]) == ("local", "shipped")


def test_show_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "pi5") == 3
    assert capsys.readouterr().err == (
        "error: unknown target 'pi5'\n"
        " hint: edgephi targets list shows them; edgephi targets add NAME HOST --profile PROFILE makes one\n"
    )


def test_remove(capsys: pytest.CaptureFixture[str]) -> None:
    path = config_dir() / "targets/pi5.toml"
    run(*ADD)
    capsys.readouterr()
    assert run("remove", "pi5") == 0
    assert capsys.readouterr().out == f"pi5: removed {path}\n"
    assert not path.exists()
    run(*ADD)
    capsys.readouterr()
    assert run("remove", "pi5", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "pi5", "path": str(path), "removed": True}


def test_remove_the_shipped_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("remove", "local") == 3
    assert capsys.readouterr().err.startswith("error: target 'local' came with edgephi and stays: ")


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == 0
    assert json.loads(capsys.readouterr().out) == target_json_schema()


def server_options(server: PrivateSshd | EmbeddedServer, *more: str) -> tuple[str, ...]:
    known_hosts = () if "--known-hosts" in more else ("--known-hosts", str(server.known_hosts))
    identity = ("--identity-file", str(server.identity_file), "--user", server.user)
    return ("--port", str(server.port), *identity, *known_hosts, *more)


@pytest.fixture
def like_this_machine(tmp_path: Path) -> str:
    """The name of a profile that suits the machine of the tests and no other."""
    folder = config_dir() / "profiles"
    folder.mkdir(parents=True)
    arch = platform.machine()
    text = (shipped_dir("profiles") / "laptop-cpu-x86.toml").read_text().replace("x86_64", arch)
    text = text.replace('ram = "16 GiB"', f'ram = "{localhost.ram_bytes() / 2**30:.1f} GiB"')
    text = text.replace('ram_reserved = "4 GiB"', 'ram_reserved = "100 MiB"')
    (folder / "this-one.toml").write_text(text)
    return "this-one"


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedServer]:
    config = tmp_path / "ssh_config"
    config.write_text("IdentityFile none\n")
    monkeypatch.setenv("EDGEPHI_SSH_CONFIG", str(config))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with EmbeddedServer(tmp_path / "device") as server:
        yield server


def test_add_without_a_profile_asks_the_machine(
    embedded: EmbeddedServer, like_this_machine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("add", "board", "127.0.0.1", *server_options(embedded), "--json") == 0
    out, err = capsys.readouterr()
    added = json.loads(out)
    assert added["profile"] == load_target("board").profile == like_this_machine
    assert added["profile_reasons"][0] == f"for any {platform.machine()} device with linux"
    assert f"board gets profile {like_this_machine}: for any {platform.machine()} device with linux; " in err
    assert "edgephi doctor board checks the rest" in err


def test_add_without_a_profile_where_none_fits(
    embedded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("toolkit.catalog.toml.shipped_dir", lambda name: tmp_path / "shipped" / name)
    folder = tmp_path / "shipped" / "profiles"
    folder.mkdir(parents=True)
    for name in ("local", "raspberry-pi-4-8gb"):
        shutil.copy(REPO / "profiles" / f"{name}.toml", folder)
    assert run("add", "board", "127.0.0.1", *server_options(embedded)) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: board: no profile fits ")
    assert "\n         raspberry-pi-4-8gb: " in err
    assert "name one with --profile" in err
    assert not (config_dir() / "targets").exists()


def test_add_to_an_unknown_host_ends_in_a_command_that_trusts_it(
    embedded: EmbeddedServer, like_this_machine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "our hosts"
    add = ("add", "board", "127.0.0.1", *server_options(embedded, "--known-hosts", str(known)))
    assert run(*add) == 7
    err = capsys.readouterr().err
    assert err.startswith(f"error: board (127.0.0.1:{embedded.port}): unknown host key ssh-ed25519 SHA256:")
    assert not (config_dir() / "targets").exists()
    command = shlex.split(err.partition("then: edgephi targets ")[2])
    assert command[:2] == ["trust", "board"]
    assert run(*command) == 0
    assert run(*add) == 0
    assert load_target("board").profile == like_this_machine


def test_add_without_a_profile_to_a_machine_that_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert run("add", "board", "127.0.0.1", "--port", str(port)) == 7
    assert f"error: board (127.0.0.1:{port}): connection refused" in capsys.readouterr().err


def test_what_is_wrong_is_said_before_connecting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("add", "local", "127.0.0.1", "--port", str(free_port())) == 3
    assert "target 'local' exists already" in capsys.readouterr().err
    assert run("add", "board", "127.0.0.1:ssh") == 3
    assert "the port goes into `port`" in capsys.readouterr().err


def test_an_address_of_a_target_that_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trust", "pi5", "SHA256:x", "--port", "22") == 2
    assert "go with --host" in capsys.readouterr().err
