"""The files that a search ends with load where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.profiles import board, write_own
from toolkit.catalog import load_profile, load_recipe
from toolkit.catalog.recipe import list_recipes
from toolkit.catalog.settings import RuntimeSettings
from toolkit.catalog.toml import find_toml
from toolkit.errors import ConfigError
from toolkit.jobs.tune.output import write_files

SETTINGS = RuntimeSettings(threads=2, chunk_size=64, ngram_size=3, max_draft_tokens=8)


@pytest.mark.parametrize("name", sorted(find_toml("recipes")))
def test_every_recipe_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    write_own("board", board())
    recipe = load_recipe(name)
    file, _ = write_files(tmp_path / "out", recipe, load_profile("board"), SETTINGS, context_tokens=None, notes=["why"])
    again = load_recipe(str(file))
    assert again.table() == recipe.table()
    assert file.read_text().startswith("# why\n")


def test_the_profile_extends_the_old_one_and_changes_only_what_was_found(tmp_path: Path) -> None:
    write_own("board", board(status="hardware", runtime__max_draft_tokens=2, runtime__ngram_size=4))
    base = load_profile("board")
    recipe = load_recipe("int4-rtn-b128")
    off = RuntimeSettings(threads=3).resolved(4)
    _, file = write_files(tmp_path, recipe, base, off, context_tokens=512, notes=["one\ntwo"])
    tuned = load_profile(str(file))
    assert file.name == "board-tuned.toml" and tuned.extends == "board"
    assert tuned.runtime.settings.resolved(4) == off
    assert (tuned.defaults.recipe, tuned.defaults.context_tokens) == ("int4-rtn-b128", 512)
    assert (tuned.hardware, tuned.status) == (base.hardware, "hardware")
    assert file.read_text().startswith("# one\n# two\n")


def test_both_names_resolve_in_the_folder_they_were_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("int4-rtn-b32").model_copy(update={"name": "mine"})
    write_files(tmp_path / "out", recipe, load_profile("local"), SETTINGS, context_tokens=None, notes=[])
    monkeypatch.chdir(tmp_path / "out")
    assert load_profile("local-tuned").defaults.recipe == "mine"
    assert "mine" in [found.name for found in list_recipes()]


def test_a_calibration_file_is_still_found(tmp_path: Path) -> None:
    source = tmp_path / "own" / "careful.toml"
    source.parent.mkdir()
    (source.parent / "text.jsonl").write_text('{"text": "x"}\n')
    source.write_text(
        'description = "d"\nalgorithm = "gptq"\nbits = 4\nblock_size = 32\n[calibration]\nfile = "text.jsonl"\n'
    )
    write_own("board", board())
    file, _ = write_files(
        tmp_path / "out", load_recipe(str(source)), load_profile("board"), SETTINGS, context_tokens=None, notes=[]
    )
    calibration = load_recipe(str(file)).calibration
    assert calibration is not None and calibration.file is not None
    assert (file.parent / calibration.file).resolve() == (source.parent / "text.jsonl").resolve()


def test_text_that_was_given_instead_is_what_the_file_names(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("words")
    write_own("board", board())
    for name, named in (("int4-gptq-b32", True), ("int4-rtn-b32", False)):
        file, _ = write_files(
            tmp_path / "out",
            load_recipe(name),
            load_profile("board"),
            SETTINGS,
            context_tokens=None,
            calibration=text,
            notes=[],
        )
        calibration = load_recipe(str(file)).calibration
        assert (calibration is not None) == named
        if calibration is not None and calibration.file is not None:
            assert (file.parent / calibration.file).samefile(text)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        write_files(
            tmp_path / "out", load_recipe("fp32"), load_profile("local"), SETTINGS, context_tokens=None, notes=[]
        )
    assert caught.value.hint == "name another folder: --out"
