from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from toolkit.catalog import Target, list_targets, load_target
from toolkit.catalog.target import (
    BrokenTarget,
    expand,
    over,
    remove_target,
    save_target,
    select_targets,
    target_groups,
    target_json_schema,
    target_toml,
)
from toolkit.catalog.trust import trust_folder
from toolkit.config import config_dir, shipped_dir
from toolkit.errors import ConfigError

PI5: dict[str, Any] = {"host": "pi5.local", "profile": "raspberry-pi-5-8gb"}


def write(name: str, table: dict[str, Any], folder: Path | None = None) -> Path:
    path = (folder or Path("targets")) / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def refusal(name: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_target(name)
    assert caught.value.exit_code == 3
    return caught.value


def test_defaults() -> None:
    path = write("pi5", PI5)
    target = load_target("pi5")
    assert target.path == path.absolute()
    assert target.model_dump() == {
        "schema_version": 1,
        "transport": "ssh",
        "host": "pi5.local",
        "user": None,
        "port": None,
        "profile": "raspberry-pi-5-8gb",
        "install_root": "~/.edgephi",
        "python": "python3",
        "os": None,
        "identity_file": None,
        "known_hosts": None,
        "tags": (),
        "allowed_signers": None,
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("host", "192.168.1.7"),
        ("host", "fe80::1%eth0"),
        ("host", "::1"),
        ("host", "my_alias"),
        ("user", "pi"),
        ("user", "LAB\\pi"),
        ("port", 65535),
        ("install_root", "/opt/edgephi"),
        ("install_root", "C:/Users/pi/edgephi"),
        ("install_root", "edgephi"),
        ("python", "/usr/bin/python3.11"),
        ("python", "~/venv/bin/python"),
        ("tags", ("lab", "arm")),
    ],
)
def test_accepted(key: str, value: object) -> None:
    assert getattr(Target.model_validate({"name": "pi5", **PI5, key: value}), key) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": None}, "host: missing"),
        (
            {"host": "pi5 local"},
            "host: 'pi5 local' is not a host name, an address or an alias of ~/.ssh/config",
        ),
        (
            {"host": "-oProxyCommand=x"},
            "host: '-oProxyCommand=x' is not a host name, an address or an alias of ~/.ssh/config",
        ),
        ({"host": ""}, "host: '' is not a host name, an address or an alias of ~/.ssh/config"),
        ({"host": "pi:hunter2@pi5"}, "host: the user goes into `user`, not before the host"),
        ({"host": "pi5:22"}, "host: 'pi5:22': the port goes into `port`, not after the host"),
        (
            {"host": "[::1]:22"},
            "host: '[::1]:22': an IPv6 address is written without brackets, the port goes into `port`",
        ),
        ({"host": "1:2:3"}, "host: '1:2:3' is not an IPv6 address"),
        ({"host": "fe80::1%a b"}, "host: 'fe80::1%a b' is not an IPv6 address"),
        ({"host": "pi5\n"}, "host: 'pi5\n' is not a host name, an address or an alias of ~/.ssh/config"),
        ({"user": "-l root"}, "user: '-l root' is not a user name: ssh, or a ProxyCommand's shell, would misread '-'"),
        ({"port": 0}, "port: must be greater than or equal to 1, not 0"),
        ({"port": 65536}, "port: must be less than or equal to 65535, not 65536"),
        ({"port": "22"}, "port: must be a valid integer, not '22'"),
        ({"profile": None}, "profile: missing"),
        ({"profile": ""}, "profile: must not be empty"),
        (
            {"install_root": "/"},
            "install_root: '/' is no folder of edgephi's own; write one like '~/.edgephi'",
        ),
        (
            {"install_root": "~/"},
            "install_root: '~/' is no folder of edgephi's own; write one like '~/.edgephi'",
        ),
        (
            {"install_root": "C:/"},
            "install_root: 'C:/' is no folder of edgephi's own; write one like '~/.edgephi'",
        ),
        (
            {"install_root": "."},
            "install_root: '.' is no folder of edgephi's own; write one like '~/.edgephi'",
        ),
        ({"install_root": "~"}, "install_root: '~' may have ~ only as a leading '~/', the login folder"),
        (
            {"install_root": "~bob/x"},
            "install_root: '~bob/x' may have ~ only as a leading '~/', the login folder",
        ),
        ({"install_root": "~/../x"}, "install_root: '~/../x' may not go up with '..'"),
        ({"install_root": "-x"}, "install_root: '-x' would be read as an option"),
        (
            {"install_root": "~/my files"},
            "install_root: '~/my files' may only have letters, digits and . _ / ~ : - in it",
        ),
        (
            {"python": "python3; reboot"},
            "python: 'python3; reboot' may only have letters, digits and . _ / ~ : - in it",
        ),
        (
            {"python": "$(id)"},
            "python: '$(id)' may only have letters, digits and . _ / ~ : - in it",
        ),
        (
            {"identity_file": "-----BEGIN OPENSSH PRIVATE KEY-----"},
            "identity_file: edgephi keeps no secrets in files; write the path of the key file",
        ),
        ({"tags": ["a b"]}, "tags: 'a b' is not a tag: letters, digits and . _ - only"),
        ({"transport": "telnet"}, "transport: must be 'ssh', 'paramiko', 'openssh' or 'local', not 'telnet'"),
        ({"transport": "local"}, "host: means nothing with transport 'local'"),
        ({"hots": "x"}, "hots: unknown key (did you mean 'host'?)"),
        ({"path": "x"}, "path: unknown key"),
        ({"schema_version": 2}, "schema_version: must be 1, not 2"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    write("pi5", {key: value for key, value in (PI5 | change).items() if value is not None})
    assert refusal("pi5").message == f"targets/pi5.toml: {message}"


@pytest.mark.parametrize(
    "key",
    ["password", "Password", "sudo_password", "passphrase", "token", "secret", "private_key", "api-key"],
)
def test_secrets(key: str) -> None:
    write("pi5", PI5 | {key: "hunter2"})
    error = refusal("pi5")
    assert error.message == f"targets/pi5.toml: {key}: edgephi keeps no secrets in files"
    assert error.hint == "delete it there; put the key into ssh-agent, or name its file with identity_file"


def test_secrets_in_tables() -> None:
    write("pi5", PI5 | {"auth": {"password": "hunter2"}})
    assert refusal("pi5").message == "targets/pi5.toml: auth.password: edgephi keeps no secrets in files"


def test_unknown_name() -> None:
    write("pi5", PI5)
    error = refusal("pi6")
    assert error.message == "unknown target 'pi6' (did you mean 'pi5'?)"
    assert error.hint is not None and "edgephi targets add" in error.hint


def test_a_file_with_a_bad_name() -> None:
    write("my pi", PI5)
    assert refusal("my pi").message == (
        "targets/my pi.toml: name: 'my pi' is not a name: letters, digits and . _ - only, at most 64"
    )


def test_the_shipped_target_is_this_machine() -> None:
    local = load_target("local")
    assert (local.transport, local.profile, local.host) == ("local", "local", None)
    assert [target.name for target in list_targets()] == ["local"]


def test_the_shipped_example_is_a_target() -> None:
    text = (shipped_dir("targets") / "example-pi5.toml.example").read_text(encoding="utf-8")
    assert text.startswith("#:schema ../docs/schema/target.schema.json\n")
    Path("targets").mkdir()
    uncommented = re.sub(r"^# (?=[a-z_]+ =)", "", text, flags=re.MULTILINE)
    Path("targets/pi5.toml").write_text(uncommented, encoding="utf-8")
    trust_folder()
    assert load_target("pi5").tags == ("lab", "arm")


def test_a_broken_file_hides_only_itself() -> None:
    write("pi5", PI5)
    write("broken", {"host": "x"})
    names = {target.name: type(target) for target in list_targets()}
    assert names == {"broken": BrokenTarget, "local": Target, "pi5": Target}


def test_save_and_load_again() -> None:
    target = Target.model_validate({"name": "pi5", **PI5, "port": 2222, "tags": ["lab"], "identity_file": "~/.ssh/x"})
    path = save_target(target, config_dir() / "targets")
    assert path == config_dir() / "targets" / "pi5.toml"
    assert load_target("pi5") == target.model_copy(update={"path": path})
    assert [entry.name for entry in path.parent.iterdir()] == ["pi5.toml"]


def test_save_writes_only_what_was_chosen() -> None:
    assert target_toml(Target.model_validate({"name": "pi5", **PI5})) == (
        'schema_version = 1\nhost = "pi5.local"\nprofile = "raspberry-pi-5-8gb"\n'
    )


def test_save_replaces_only_when_told() -> None:
    target = Target.model_validate({"name": "pi5", **PI5})
    path = save_target(target, Path("targets"))
    with pytest.raises(ConfigError) as caught:
        save_target(target, Path("targets"))
    assert caught.value.message == "targets/pi5.toml: exists already"
    save_target(target.model_copy(update={"host": "other"}), Path("targets"), replace=True)
    assert 'host = "other"' in path.read_text(encoding="utf-8")


def test_save_where_nothing_can_be_written() -> None:
    Path("file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^file/pi5\.toml: cannot be written: ") as caught:
        save_target(Target.model_validate({"name": "pi5", **PI5}), Path("file"))
    assert caught.value.exit_code == 3


def test_a_failed_save_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.model_validate({"name": "pi5", **PI5})
    path = save_target(target, Path("targets"))
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        save_target(target.model_copy(update={"host": "other"}), Path("targets"), replace=True)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["pi5.toml"]


def test_remove() -> None:
    write("broken", {"host": "x"})
    assert remove_target("broken").name == "broken.toml"
    assert [target.name for target in list_targets()] == ["local"]
    with pytest.raises(ConfigError, match="unknown target 'broken'"):
        remove_target("broken")


def test_the_shipped_target_stays() -> None:
    with pytest.raises(ConfigError, match="target 'local' came with edgephi and stays"):
        remove_target("local")


def test_the_schema_file_is_in_step() -> None:
    path = shipped_dir("targets").parent / "docs/schema/target.schema.json"
    if not path.parent.is_dir():
        pytest.skip("docs/ is in the repository only")
    assert json.loads(path.read_text(encoding="utf-8")) == target_json_schema(), (
        "run: edgephi targets schema > docs/schema/target.schema.json"
    )


def test_another_client_is_for_targets_over_ssh() -> None:
    pi5, here = (Target(name="x", profile="local", **fields) for fields in ({"host": "pi5"}, {"transport": "local"}))
    found = [over(pi5, client).transport for client in (None, "auto", "paramiko", "openssh")]
    assert found == ["ssh", "ssh", "paramiko", "openssh"]
    assert over(over(pi5, "openssh"), "auto") == pi5
    assert over(here, "openssh") is here


def test_the_schema_has_no_place_for_a_name() -> None:
    schema = target_json_schema()
    assert set(schema["properties"]) == set(Target.model_fields) - {"name", "path"}
    assert schema["required"] == ["profile"]


GROUPS = {"all": ["a", "b", "c"], "lab": ["b", "a"], "arm": ["c", "b"]}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], []),
        (["x", "a", "x"], ["x", "a"]),
        (["@lab"], ["b", "a"]),
        (["@all"], ["a", "b", "c"]),
        (["c", "@lab", "@arm", "a"], ["c", "b", "a"]),
        (["lab"], ["lab"]),
    ],
)
def test_words_stand_for_names_in_order_without_repetitions(words: list[str], names: list[str]) -> None:
    assert expand(words, GROUPS) == names


@pytest.mark.parametrize(("word", "near"), [("@lba", " (did you mean '@lab'?)"), ("@", ""), ("@printer", "")])
def test_an_unknown_tag(word: str, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        expand(["a", word], GROUPS)
    assert error.value.message == f"unknown tag '{word}'{near}"
    assert error.value.hint == "known tags: @all, @lab, @arm"


def test_a_tag_of_nobody() -> None:
    with pytest.raises(ConfigError) as error:
        expand(["@all"], {"all": []})
    assert error.value.message == "@all: no target"
    assert error.value.hint == "edgephi targets add NAME HOST --profile PROFILE makes one"


def test_all_is_every_target_but_those_that_came_with_edgephi() -> None:
    write("pi5", PI5 | {"tags": ["lab", "all"]})
    write("orin", PI5 | {"tags": ["lab"]})
    trust_folder()
    groups = target_groups(target for target in list_targets() if isinstance(target, Target))
    assert groups == {"all": ["orin", "pi5"], "lab": ["orin", "pi5"]}
    assert [target.name for target in select_targets(["local", "@lab"])] == ["local", "orin", "pi5"]
    write("local", {"transport": "local", "profile": "local"})
    trust_folder()
    assert [target.name for target in select_targets(["@all"])] == ["local", "orin", "pi5"]


def test_a_tag_is_not_expanded_past_a_file_that_cannot_be_read() -> None:
    write("pi5", PI5 | {"tags": ["lab"]})
    write("torn", PI5 | {"hots": "x"})
    with pytest.raises(ConfigError) as error:
        select_targets(["@lab"])
    assert error.value.message == "targets/torn.toml: hots: unknown key (did you mean 'host'?)"
    assert error.value.hint is not None and "name the targets one by one" in error.value.hint
    assert [target.name for target in select_targets(["pi5"])] == ["pi5"]
