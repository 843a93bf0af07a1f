"""toolkit.catalog.trust: files of the working folder, the keys that need trust, and the memory of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import REPO
from tests.support.profiles import write as write_profile
from toolkit.catalog import Profile, Target, list_targets, load_profile, load_recipe, load_target
from toolkit.catalog.profile import Hardware
from toolkit.catalog.target import remove_target, select_targets
from toolkit.catalog.trust import FREE_KEYS, examine, forget_folder, is_trusted, trust_folder
from toolkit.catalog.workload import load_workload
from toolkit.config import config_dir, shipped_dir
from toolkit.errors import ConfigError, UntrustedFile
from toolkit.events import Event, Warning_, listening

HINT = "read its files, then type: edgephi trust (or say --trust-folder)"
OWN = {"schema_version": 1, "extends": "local"}


@pytest.fixture(autouse=True)
def said() -> Iterator[list[str]]:
    """The texts that are announced in the test."""
    texts: list[str] = []

    def hear(event: Event) -> None:
        assert isinstance(event, Warning_)
        texts.append(event.text)

    with listening(hear):
        yield texts


def write(kind: str, name: str, text: str, folder: Path | None = None) -> Path:
    path = (folder or Path()) / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(load: Any, name: str, key: str) -> None:
    with pytest.raises(UntrustedFile) as caught:
        load(name)
    kind = {load_profile: "profiles", load_target: "targets"}.get(
        load, "recipes" if load is load_recipe else "workloads"
    )
    assert caught.value.message == f"{kind}/{name}.toml: {key}: needs your trust in this folder, {Path.cwd()}"
    assert (caught.value.hint, caught.value.exit_code) == (HINT, 3)


def test_packages_need_trust(said: list[str]) -> None:
    write_profile("local", OWN | {"runtime": {"packages": ["edgephi-speedups==1.0"]}})
    refused(load_profile, "local", "runtime.packages")
    hidden = shipped_dir("profiles") / "local.toml"
    words = f"profiles/local.toml is read instead of {hidden}: files of the working folder come first"
    assert said == [words]
    trust_folder()
    assert load_profile("local").runtime.packages == ("edgephi-speedups==1.0",)
    assert said == [words, words]


def test_what_loosens_nothing_is_said_and_used(said: list[str]) -> None:
    write_profile("local", OWN | {"runtime": {"threads": 1}, "defaults": {"context": 512}, "hardware": {"cores": 2}})
    assert load_profile("local").runtime.threads == 1
    assert len(said) == 1
    write("workloads", "default.toml", (shipped_dir("workloads") / "default.toml").read_text() + "# ours\n")
    load_workload("default")
    assert said[1].startswith("workloads/default.toml is read instead of ")


def test_limits_are_lost_by_a_file_that_extends_another() -> None:
    mine = OWN | {"limits": {"min_decode_tps": 5.0}}
    write_profile("board", mine, config_dir() / "profiles")
    write_profile("board", OWN)
    refused(load_profile, "board", "extends")
    write_profile("board", OWN | {"extends": "board"})
    assert load_profile("board").limits.min_decode_tps == 5.0


def test_a_profile_of_ones_own_extends_no_file_of_the_folder(said: list[str]) -> None:
    write_profile("mine", OWN, config_dir() / "profiles")
    write_profile("local", OWN | {"runtime": {"packages": ["edgephi-speedups==1.0"]}})
    assert "edgephi-speedups==1.0" not in load_profile("mine").runtime.packages
    assert said == []


def test_a_profile_of_ones_own_that_extends_one_of_the_folder_alone() -> None:
    write_profile("mine", OWN | {"extends": "team"}, config_dir() / "profiles")
    write_profile("team", OWN | {"runtime": {"packages": ["edgephi-speedups==1.0"]}})
    with pytest.raises(UntrustedFile, match=r"^profiles/team\.toml: runtime\.packages: "):
        load_profile("mine")


@pytest.mark.parametrize("way", ["../evil", "./evil", "evil.toml"])
def test_extends_is_no_path(way: str) -> None:
    write_profile("evil", OWN | {"runtime": {"packages": ["edgephi-speedups==1.0"]}}, Path())
    write_profile("board", OWN | {"extends": way})
    with pytest.raises(ConfigError) as caught:
        load_profile("board")
    assert caught.value.message == f"profiles/board.toml: extends: must be the name of a profile, not '{way}'"


def test_a_target_that_hides_one_which_demands_signatures() -> None:
    write("targets", "pi5.toml", 'host = "pi5"\nprofile = "local"\nallowed_signers = "team"\n', config_dir())
    write("targets", "pi5.toml", 'host = "pi5"\nprofile = "local"\n')
    refused(load_target, "pi5", "allowed_signers")
    write("targets", "pi5.toml", 'host = "elsewhere"\nprofile = "local"\nallowed_signers = "team"\n')
    refused(load_target, "pi5", "host")
    write("targets", "pi5.toml", 'host = "pi5"\nprofile = "local"\nallowed_signers = "team"\n')
    refused(load_target, "pi5", "allowed_signers")


@pytest.mark.parametrize(
    "line",
    [
        'known_hosts = "hosts"',
        'python = "/tmp/python"',
        'install_root = "~/.ssh"',
        'identity_file = "key"',
        'allowed_signers = "team"',
        'transport = "openssh"',
        'profile = "/evil.toml"',
    ],
)
def test_keys_of_a_target_that_hides_nothing(line: str) -> None:
    base = 'host = "pi9"\n' + ('profile = "local"\n' if "profile" not in line else "")
    write("targets", "pi9.toml", base)
    if "profile" not in line:
        assert load_target("pi9").host == "pi9"
    write("targets", "pi9.toml", f"{base}{line}\n")
    refused(load_target, "pi9", line.split()[0])
    trust_folder()
    assert load_target("pi9").host == "pi9"


def test_a_tag_means_targets_of_the_folder_only_with_trust() -> None:
    write("targets", "mine.toml", 'host = "mine"\nprofile = "local"\ntags = ["lab"]\n', config_dir())
    write("targets", "theirs.toml", 'host = "theirs"\nprofile = "local"\ntags = ["lab"]\n')
    for word in ("@lab", "@all"):
        with pytest.raises(UntrustedFile, match=r"^targets/theirs\.toml: tags, and @all: needs your trust"):
            select_targets([word])
    trust_folder()
    assert [target.name for target in select_targets(["@lab"])] == ["mine", "theirs"]


@pytest.mark.parametrize(
    ("kind", "load", "name"), [("workloads", load_workload, "quick"), ("recipes", load_recipe, "fp32")]
)
def test_nothing_takes_the_place_of_what_gates_measure_by(kind: str, load: Any, name: str) -> None:
    write(kind, f"{name}.toml", (shipped_dir(kind) / f"{name}.toml").read_text() + "# ours\n")
    refused(load, name, "its name, which gates measure by")


def test_copies_of_shipped_files_need_no_trust(said: list[str]) -> None:
    for kind in ("profiles", "targets"):
        for path in shipped_dir(kind).glob("*.toml"):
            write(kind, path.name, path.read_text(encoding="utf-8"))
    write("targets", "local.toml", 'transport = "local"\nprofile = "local"\ninstall_root = "~/mine"\n', config_dir())
    assert load_profile("local").path == shipped_dir("profiles") / "local.toml"
    assert load_target("local").install_root == "~/mine"
    assert (said, examine()) == ([], [])


def test_in_a_checkout_ones_own_files_outrank_the_shipped_ones(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.chdir(REPO)
    write("targets", "local.toml", 'transport = "local"\nprofile = "local"\ninstall_root = "~/mine"\n', config_dir())
    assert load_target("local").install_root == "~/mine"
    assert load_profile("raspberry-pi-5-8gb").path == REPO / "profiles/raspberry-pi-5-8gb.toml"
    assert said == []


def test_a_folder_that_has_changed_is_asked_about_again() -> None:
    write("targets", "pi9.toml", 'host = "pi9"\nprofile = "local"\nallowed_signers = "../team"\n')
    write("profiles", "gone.toml", "schema_version = 1\n")
    Path("team").write_text("alice\n")
    trust_folder()
    assert is_trusted()
    Path("team").write_text("mallory\n")
    Path("profiles/gone.toml").unlink()
    write("recipes", "new.toml", "")
    with pytest.raises(UntrustedFile) as caught:
        load_target("pi9")
    assert caught.value.message == (
        "targets/pi9.toml: allowed_signers: needs your trust in this folder, which has changed since you gave it: "
        "profiles/gone.toml (gone), recipes/new.toml (new), team (changed)"
    )
    assert forget_folder() and not forget_folder()


def test_trust_is_for_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'host = "pi9"\nprofile = "local"\npython = "/x"\n'
    write("targets", "pi9.toml", text)
    trust_folder()
    write("targets", "pi9.toml", text, tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    refused(load_target, "pi9", "python")


def test_ones_own_command_keeps_a_trusted_folder_trusted() -> None:
    for name in ("a", "b"):
        write("targets", f"{name}.toml", 'host = "h"\nprofile = "local"\npython = "/x"\n')
    trust_folder()
    remove_target("a")
    assert load_target("b").python == "/x"
    forget_folder()
    remove_target("b")
    assert not is_trusted()


def test_every_key_is_decided_in_the_documents_table() -> None:
    text = (REPO / "docs/security.md").read_text(encoding="utf-8")
    rows = {
        name.strip(" `"): cells[1].strip()
        for cells in (line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `"))
        for name in cells[0].split(",")
        if len(cells) == 3
    }
    targets = {f"target {key}" for key, field in Target.model_fields.items() if not field.exclude}
    profiles = {f"profile {key}" for key in Profile.model_fields if key not in ("name", "path", "runtime", "limits")}
    runtime = Profile.model_fields["runtime"].annotation
    assert runtime is not None
    profiles |= {f"profile runtime.{key}" for key in runtime.model_fields} | {"profile limits"}
    assert Hardware.model_fields
    for key in targets | profiles:
        kind, _, name = key.partition(" ")
        free = name in FREE_KEYS[f"{kind}s"]
        assert rows[key] == ("no" if free else "yes"), key


def test_a_broken_or_strange_file_hides_only_itself() -> None:
    write("targets", "pi9.toml", 'host = "pi9"\nprofile = "local"\npython = "/x"\n')
    assert [type(target) is Target for target in list_targets()] == [True, False]
