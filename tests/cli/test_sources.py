"""toolkit.cli.sources: the word for a target or a bundle, as `bench` and `eval` take it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bundles import make
from tests.support.commands import edgephi
from toolkit.bundle import Bundle
from toolkit.bundle.store import store_dir
from toolkit.cli.sources import find_subject
from toolkit.config import config_dir
from toolkit.errors import ConfigError


def stored() -> Bundle:
    made = make(store_dir() / "new")
    made.path.rename(store_dir() / made.id)
    return made


def target(name: str) -> None:
    folder = config_dir() / "targets"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text('host = "h"\nprofile = "local"\n')


@pytest.mark.parametrize("command", ["bench", "eval"])
def test_neither_a_target_nor_a_bundle(command: str) -> None:
    Path("lokal").mkdir()
    done = edgephi(command, "lokal")
    assert done.returncode == 3
    assert done.stderr == (
        "error: 'lokal' is neither a target nor a bundle (did you mean 'local'?)\n"
        " hint: edgephi targets list and edgephi bundle list show them; the folder of that name is ./lokal\n"
    )


def test_a_target_or_a_bundle() -> None:
    made = stored()
    target("pi5")
    assert find_subject("pi5") == (None, "pi5")
    bundle, place = find_subject("nano-int4")
    assert bundle is not None and (bundle.id, place) == (made.id, None)
    make(Path("pi5"))
    found, place = find_subject("./pi5")
    assert found is not None and (found.path, place) == (Path("pi5"), None)


def test_a_target_and_a_bundle() -> None:
    made = stored()
    target("nano-int4")
    with pytest.raises(ConfigError) as caught:
        find_subject("nano-int4")
    assert caught.value.message == "'nano-int4' is a target and a bundle"
    assert caught.value.hint == f"name the bundle by its id, {made.id[:12]}; for the target, give its file another name"
