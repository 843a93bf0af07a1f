from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from tests.support.servers import Address
from toolkit.device.ssh import config as ssh_config
from toolkit.device.ssh.config import parse_ssh_g, resolve, ssh_options
from toolkit.errors import ConfigError

TARGET = Address("pi5", "pi")


@pytest.fixture(params=["ssh -G", "paramiko"])
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration file, read by either reader."""
    if request.param == "paramiko":
        monkeypatch.setattr("shutil.which", lambda _: None)
    return tmp_path / "ssh_config"


def test_parse_ssh_g() -> None:
    text = "user bob\nhostname 10.0.0.5\nport 2222\nidentityfile ~/.ssh/a\nidentityfile ~/.ssh/b c\n\nempty\n"
    assert parse_ssh_g(text) == {
        "user": ["bob"],
        "hostname": ["10.0.0.5"],
        "port": ["2222"],
        "identityfile": ["~/.ssh/a", "~/.ssh/b c"],
    }


def test_alias(config: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    config.write_text(
        "Host pi\n  HostName 10.0.0.5\n  User bob\n  Port 2222\n"
        f"  IdentityFile {key}\n  IdentityFile {key}.none\n  IdentitiesOnly yes\n"
        f"  HostKeyAlias the-pi\n  ConnectTimeout 3\n  UserKnownHostsFile {tmp_path}/%h %d/k2\n"
    )
    options = resolve(TARGET)
    assert (options.hostname, options.user, options.port) == ("10.0.0.5", "bob", 2222)
    assert (options.identity_files, options.identities_only) == ((key,), True)
    assert (options.host_key_alias, options.connect_timeout_s) == ("the-pi", 3)
    assert options.known_hosts[0] == tmp_path / "10.0.0.5"
    assert options.known_hosts[1].name == "k2"
    assert options.proxy_command is None


def test_the_targets_own_fields_win(config: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    config.write_text("Host pi\n  HostName 10.0.0.5\n  User bob\n  Port 2222\n")
    target = Address("pi5", "pi", "eve", 22022, key, tmp_path / "known")
    options = resolve(target)
    assert (options.hostname, options.user, options.port) == ("10.0.0.5", "eve", 22022)
    assert options.identity_files[0] == key
    assert options.known_hosts == (tmp_path / "known",)


def test_defaults_without_any_entry(config: Path) -> None:
    config.write_text("")
    options = resolve(TARGET)
    assert (options.hostname, options.port, options.connect_timeout_s) == ("pi", 22, 10)
    assert options.known_hosts[0].parts[-2:] == (".ssh", "known_hosts")


def test_include_is_followed(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host pi\n  HostName 10.0.0.6\n")
    (tmp_path / "ssh_config").write_text(f"Include {tmp_path}/more\n")
    assert resolve(TARGET).hostname == "10.0.0.6"


def test_proxy_command_tokens(config: Path) -> None:
    config.write_text("Host pi\n  HostName 10.0.0.5\n  User bob\n  ProxyCommand relay %h:%p %r\n")
    assert resolve(TARGET).proxy_command == "relay 10.0.0.5:22 bob"


def test_doubled_percent_signs_are_one() -> None:
    options = ssh_options("pi", TARGET, None, {"hostname": ["10.0.0.5"], "proxycommand": ["relay %% %%h %h"]})
    assert options.proxy_command == "relay % %h 10.0.0.5"


@pytest.mark.parametrize(
    ("jump", "argv"),
    [
        ("gate", "-W 10.0.0.5:22 -- ssh://gate"),
        ("bob@gate:2200", "-W 10.0.0.5:22 -- ssh://bob@gate:2200"),
        ("first,second", "-J first {alive} -W 10.0.0.5:22 -- ssh://second"),
    ],
)
def test_proxy_jump_becomes_a_command(jump: str, argv: str) -> None:
    options = ssh_options("pi", TARGET, None, {"hostname": ["10.0.0.5"], "proxyjump": [jump]})
    alive = "-o ServerAliveInterval=10 -o ServerAliveCountMax=2"
    expected = argv.format(alive=alive) if "{alive}" in argv else f"{alive} {argv}"
    assert options.proxy_command is not None
    assert options.proxy_command.endswith(expected)


@pytest.mark.parametrize(
    "name", ["a;touch x", "$(touch x)", "`touch x`", "a b", "a|b", "-oProxyCommand=x", "a'b", "a\\"]
)
def test_names_that_a_proxy_commands_shell_would_obey(name: str) -> None:
    for values in ({"hostname": [name], "proxycommand": ["nc %h 22"]}, {"user": [name], "proxycommand": ["nc %r"]}):
        with pytest.raises(ConfigError, match="can't stand in the ProxyCommand"):
            ssh_options("pi", TARGET, None, values)
    jump = ssh_options("pi", TARGET, None, {"hostname": [name], "proxyjump": [name]}).proxy_command
    words = shlex.split(jump or "")
    assert words[words.index("-W") + 1] == f"{name}:22" and words[-2:] == ["--", f"ssh://{name}"]


def test_proxy_jump_to_an_ipv6_address() -> None:
    options = ssh_options("pi", TARGET, None, {"hostname": ["fd00::5"], "proxyjump": ["gate"]})
    assert "-W '[fd00::5]:22'" in (options.proxy_command or "")


@pytest.mark.parametrize("host", ["-oProxyCommand=touch /tmp/x", "-h", ""])
def test_a_host_that_would_be_an_option_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="is no host name"):
        resolve(Address("bad", host))


def test_a_missing_identity_file_is_named(tmp_path: Path) -> None:
    target = dataclasses.replace(TARGET, identity_file=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"target 'pi5': identity_file .*/none: no such file"):
        resolve(target)


def test_a_broken_configuration_is_explained(tmp_path: Path) -> None:
    (tmp_path / "ssh_config").write_text("Host pi\n  NoSuchOption 1\n")
    with pytest.raises(ConfigError, match=r"ssh refuses its configuration: .*nosuchoption"):
        resolve(TARGET)


def test_an_ssh_that_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ssh"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(ssh_config, "_READ_TIMEOUT_S", 0.2)
    with pytest.raises(ConfigError, match="timed out"):
        resolve(TARGET)
