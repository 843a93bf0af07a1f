"""The description that an emulated board gives of itself, read by the programs that will read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.agent.device import facts, parsers, reading
from toolkit.catalog import ProbeFacts, Profile
from toolkit.catalog.profile import list_profiles
from toolkit.catalog.recognize import propose_profile
from toolkit.emulate import find_board, list_boards
from toolkit.emulate.definition import MARKER, Board, cpuinfo, meminfo, system_files
from toolkit.errors import ConfigError

GIB = 2**30


@pytest.mark.parametrize(
    ("word", "board", "profile"),
    [
        ("raspberry-pi-5", "raspberry-pi-5", "raspberry-pi-5-8gb"),
        ("raspberry-pi-5-4gb", "raspberry-pi-5", "raspberry-pi-5-4gb"),
        ("raspberry-pi-4", "raspberry-pi-4", "raspberry-pi-4-8gb"),
    ],
)
def test_a_board_is_named_by_its_kind_or_by_a_profile(word: str, board: str, profile: str) -> None:
    found = find_board(word)
    assert (found[0].name, found[1].name) == (board, profile)


def test_a_board_that_nobody_can_emulate() -> None:
    with pytest.raises(ConfigError) as caught:
        find_board("raspbery-pi-5")
    assert caught.value.message == "unknown board 'raspbery-pi-5' (did you mean 'raspberry-pi-5'?)"
    assert caught.value.hint == (
        "boards that can be emulated: raspberry-pi-4-8gb, raspberry-pi-4-4gb, raspberry-pi-5-8gb, raspberry-pi-5-4gb, "
        "raspberry-pi-5-16gb, raspberry-pi-4, raspberry-pi-5"
    )


def test_a_board_of_ones_own_with_a_mistake(isolated: Path) -> None:
    (isolated / "boards").mkdir()
    (isolated / "boards" / "mine.toml").write_text('description = "mine"\nprofile = ["local"]\n')
    with pytest.raises(ConfigError) as caught:
        list_boards()
    assert "boards/mine.toml: profile: unknown key (did you mean 'profiles'?)" in caught.value.message


@pytest.mark.parametrize("board", list_boards(), ids=lambda board: board.name)
def test_every_profile_of_a_board_is_the_one_that_its_probe_proposes(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = [profile for profile in list_profiles() if isinstance(profile, Profile)]
    for word in board.profiles:
        _, wanted = find_board(word)
        _write(tmp_path / word, system_files(board, wanted.hardware.ram_bytes, None, "an emulator"))
        monkeypatch.setattr(reading, "SYSTEM", tmp_path / word)
        monkeypatch.setattr(facts, "ROOT", tmp_path)
        monkeypatch.setattr(facts.platform, "machine", lambda: "aarch64")
        probe = ProbeFacts.model_validate(facts.op_probe({}))
        assert (probe.board, probe.soc) == (board.model, board.compatible[-1].partition(",")[2])
        assert probe.emulated == "an emulator"
        assert propose_profile(probe, profiles, word).profile.name == word


def test_a_machine_says_that_it_isnt_emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SYSTEM", tmp_path)
    assert facts.emulated() is None
    _write(tmp_path, {MARKER: "qemu\n"})
    assert facts.emulated() == "qemu"


def test_cpuinfo_has_every_core_and_the_models_name() -> None:
    board, _ = find_board("raspberry-pi-5")
    text = cpuinfo(board)
    assert text.count("processor\t: ") == 4
    assert text.endswith("CPU revision\t: 1\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n")
    assert parsers.parse_cpuinfo(text)["features"] == ["asimd", "asimddp", "asimdhp", "fphp"]


def test_a_board_never_has_more_memory_available_than_the_machine_below_it() -> None:
    roomy, tight = (parsers.parse_meminfo(meminfo(8 * GIB, available)) for available in (64 * GIB, GIB))
    assert roomy["MemTotal"] == tight["MemTotal"] == 8 * GIB
    assert 7 * GIB < roomy["MemAvailable"] < 8 * GIB
    assert tight["MemAvailable"] == tight["MemFree"] == GIB


def _write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
