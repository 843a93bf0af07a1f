from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolkit.cli.recipes import recipes
from toolkit.errors import ConfigError


def test_list_shows_the_shipped_ones_and_the_users_own(isolated: Path) -> None:
    folder = isolated / "recipes"
    folder.mkdir()
    (folder / "mine.toml").write_text('description = "ours"\nalgorithm = "rtn"\nbits = 4\nblock_size = 64\n')
    found = json.loads(CliRunner().invoke(recipes, ["list", "--json"]).stdout)
    assert {"fp32", "int4-rtn-b32", "int4-gptq-b32", "mine"} <= {recipe["name"] for recipe in found}
    assert "ours" in CliRunner().invoke(recipes, []).stdout


def test_show_has_every_setting() -> None:
    table = json.loads(CliRunner().invoke(recipes, ["show", "int4-rtn-b32", "--json"]).stdout)
    assert (table["algorithm"], table["bits"], table["block_size"]) == ("rtn", 4, 32)


def test_an_unknown_recipe_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'int4-rtn-b23' \(did you mean 'int4-rtn-b"):
        CliRunner().invoke(recipes, ["show", "int4-rtn-b23"], catch_exceptions=False)
