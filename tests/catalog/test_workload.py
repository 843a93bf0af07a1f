from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.catalog.toml import find_toml
from toolkit.catalog.workload import load_workload
from toolkit.errors import ConfigError


def test_every_shipped_workload_loads() -> None:
    names = list(find_toml("workloads"))
    assert {"default", "quick", "quality"} <= set(names)
    assert all(load_workload(name).tokens >= 3 for name in names)


def test_unknown_workload_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError) as error:
        load_workload("defualt")
    assert error.value.message == "unknown workload 'defualt' (did you mean 'default'?)"
    assert "quick" in (error.value.hint or "")


def test_a_workload_of_the_working_folder_wins(isolated: Path) -> None:
    folder = isolated / "workloads"
    folder.mkdir()
    (folder / "default.toml").write_text('description = "mine"\nprompt_tokens = 3\ngenerate_tokens = 5\n')
    assert load_workload("default").tokens == 8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("promt_tokens = 3", "w.toml: promt_tokens: unknown key (did you mean 'prompt_tokens'?)"),
        ("prompt_tokens = 0", "w.toml: prompt_tokens: must be greater than or equal to 1, not 0"),
        ("generate_tokens = 1", "w.toml: generate_tokens: must be greater than or equal to 2, not 1"),
    ],
)
def test_wrong_values_name_file_and_key(isolated: Path, line: str, message: str) -> None:
    base = {"description": '"x"', "prompt_tokens": "4", "generate_tokens": "4"}
    key, _, value = line.partition(" = ")
    text = "\n".join(f"{name} = {text}" for name, text in (base | {key: value}).items())
    (isolated / "w.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_workload("w.toml")
    assert message in error.value.message
