"""toolkit.deploy.consent: packages without a locked hash, in rollouts and kits and beside wheels of the user's own."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, follow
from tests.support.fleets import here
from tests.support.wheels import make_wheel
from toolkit.catalog import load_profile
from toolkit.config import config_dir
from toolkit.deploy.consent import ask_for_strange, strange_wheels
from toolkit.deploy.kit import export_kit
from toolkit.errors import ConfigError
from toolkit.events import Question, drain
from toolkit.jobs.rollout import RolloutOptions, roll_out

MINOR = ".".join(platform.python_version_tuple()[:2])


@pytest.fixture(autouse=True)
def own() -> None:
    """A profile of the user's own with a package that no lock covers."""
    folder = config_dir() / "profiles"
    folder.mkdir(parents=True)
    text = 'schema_version = 1\nextends = "local"\n[runtime]\npackages = ["own-runtime==9.0"]\n'
    (folder / "own.toml").write_text(text)


def test_a_kit_needs_consent(tmp_path: Path) -> None:
    service = export_kit(build("int4-rtn-b32"), [load_profile("own")], tmp_path / "kit", pythons=[MINOR])
    with pytest.raises(ConfigError) as caught:
        follow(service)
    assert caught.value.message.startswith("profile own: no hashes are locked for own-runtime==9.0, on ")
    assert caught.value.message.endswith(": nothing is installed")
    assert not (tmp_path / "kit").exists()
    asked = []

    def grant(event: object) -> None:
        if isinstance(event, Question):
            asked.append(event.option)
            event.granted = True

    drain(export_kit(build("int4-rtn-b32"), [load_profile("own")], tmp_path / "kit", pythons=[MINOR]), grant)
    assert asked == ["--unlocked-packages"] and (tmp_path / "kit" / "kit.json").is_file()


@pytest.mark.parametrize("granted", [False, True])
def test_a_rollout_asks_nobody(tmp_path: Path, granted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    target = here("one", tmp_path / "one").model_copy(update={"profile": "own"})
    service = roll_out(build("int4-rtn-b32"), [target], RolloutOptions(offline=False), unlocked_packages=granted)
    (device,) = follow(service).devices
    assert device.state == "failed" and device.error is not None
    assert ("no hashes are locked for own-runtime==9.0" in device.error) != granted


def test_wheels_of_a_folder_and_others(tmp_path: Path) -> None:
    mine, other = make_wheel(tmp_path / "mine", "mine", "1.0"), make_wheel(tmp_path / "other", "other", "1.0")
    assert strange_wheels([mine, other], tmp_path / "mine") == [other]
    changed = make_wheel(tmp_path / "other", "mine", "1.0", "import os")
    assert strange_wheels([changed], tmp_path / "mine") == [changed]
    with pytest.raises(ConfigError) as caught:
        follow(ask_for_strange("pi5", [mine, other], tmp_path / "mine"))
    where = f"nor do they lie in {tmp_path / 'mine'}"
    assert caught.value.message == f"pi5: no hashes are locked for {other.name}, {where}: nothing is installed"
    follow(ask_for_strange("pi5", [mine], tmp_path / "mine"))
