"""Facts of a probe: reports have them in JSON exactly as the device gave them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.support.boards import BOARDS, payload_of, pi5_facts
from toolkit.catalog import ProbeFacts


@pytest.mark.parametrize("board", sorted(folder.name for folder in BOARDS.iterdir() if folder.is_dir()))
def test_a_boards_facts_are_kept_to_the_letter(board: str, tmp_path: Path) -> None:
    payload = payload_of(board, tmp_path / "board")
    assert json.dumps(ProbeFacts.model_validate(payload).as_json()) == json.dumps(payload)


def test_what_nobody_knows_travels_along(tmp_path: Path) -> None:
    payload = payload_of("jetson-orin-nano-jetpack6", tmp_path / "board")
    payload["jetson"]["carrier"] = "P3768"
    payload |= {"later": [1, 2.5, {"deep": None}], "model_dump": "a fact of that name", "as_json": True}
    facts = ProbeFacts.model_validate(payload)
    assert json.dumps(facts.as_json()) == json.dumps(payload)
    warm = facts.model_copy(update={"temp_c": 80.0})
    assert warm.as_json() == payload | {"temp_c": 80.0}


def test_what_was_not_said_is_not_made_up() -> None:
    told = {name: fact for name, fact in pi5_facts().as_json().items() if name != "emulated"}
    facts = ProbeFacts.model_validate(told)
    assert facts.emulated is None
    assert facts.as_json() == told


@pytest.mark.parametrize("name", ["board", "soc", "ram_bytes", "install_root", "throttled"])
def test_a_fact_that_something_depends_on_has_to_be_told(name: str) -> None:
    told = {key: fact for key, fact in pi5_facts().as_json().items() if key != name}
    with pytest.raises(ValidationError, match=name):
        ProbeFacts.model_validate(told)


def test_facts_do_not_change() -> None:
    facts = pi5_facts()
    with pytest.raises(ValidationError, match="frozen"):
        facts.cores = 8
