"""inventory, as typed and as Ansible calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import edgephi
from toolkit.catalog.trust import trust_folder


@pytest.fixture(autouse=True)
def targets(isolated: Path) -> None:
    folder = isolated / "targets"
    folder.mkdir()
    (folder / "pi1.toml").write_text('host = "pi1.local"\nprofile = "raspberry-pi-5-8gb"\ntags = ["lab"]\n')
    (folder / "pi2.toml").write_text(
        'host = "10.0.0.2"\nuser = "pi"\nport = 2222\nprofile = "raspberry-pi-5-8gb"\ntags = ["lab", "roof"]\n'
    )
    (folder / "torn.toml").write_text('host = "x"\n')
    trust_folder()


def test_what_ansible_reads() -> None:
    done = edgephi("inventory", "--ansible", "--list")
    assert done.returncode == 0, done.stderr
    inventory = json.loads(done.stdout)
    assert inventory == json.loads(edgephi("inventory", "--ansible").stdout)
    assert inventory["lab"] == {"hosts": ["pi1", "pi2"]}
    assert list(inventory["_meta"]["hostvars"]) == ["pi1", "pi2"]
    assert "warning: targets/torn.toml: profile: missing" in done.stderr
    host = json.loads(edgephi("inventory", "--ansible", "--host", "pi2").stdout)
    assert host == inventory["_meta"]["hostvars"]["pi2"]
    assert (host["ansible_host"], host["ansible_port"], host["ansible_user"]) == ("10.0.0.2", 2222, "pi")


def test_what_tags_mean() -> None:
    table = edgephi("inventory").stdout
    assert "@lab" in table and "pi1 pi2" in table
    answer = json.loads(edgephi("inventory", "--json").stdout)
    assert answer == {"groups": {"all": ["pi1", "pi2"], "lab": ["pi1", "pi2"], "roof": ["pi2"]}}


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--ansible", "--host", "pi3"), 3, "unknown target 'pi3' (did you mean 'pi2'?)"),
        (("--list",), 2, "--list and --host go with --ansible"),
        (("--ansible", "--list", "--host", "pi1"), 2, "--list or --host, not both"),
    ],
)
def test_asked_wrongly(args: tuple[str, ...], code: int, words: str) -> None:
    done = edgephi("inventory", *args)
    assert done.returncode == code
    assert words in done.stderr.replace("'pi1'", "'pi2'")
