"""toolkit.catalog.inheritance: a file merged with the file that it extends."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.catalog.inheritance import Chain, read_chain
from toolkit.errors import ConfigError

MINE, BASE = Path("mine.toml"), Path("base.toml")
CHAIN = Chain(
    (
        (MINE, {"extends": "base", "hardware": {"ram": "8 GiB"}}),
        (BASE, {"status": "hardware", "extends": "root", "hardware": {"ram": "4 GiB", "cores": 4}}),
    )
)


def test_the_nearest_has_the_say_key_by_key() -> None:
    assert CHAIN.merged() == {"extends": "base", "hardware": {"ram": "8 GiB", "cores": 4}}
    assert CHAIN.links[1][1]["hardware"]["ram"] == "4 GiB"


@pytest.mark.parametrize(
    ("key_path", "file"),
    [(("hardware", "ram"), MINE), (("hardware", "cores"), BASE), (("runtime", "threads"), MINE), ((), MINE)],
)
def test_a_key_comes_from_the_nearest_file_that_has_it(key_path: tuple[str, ...], file: Path) -> None:
    assert CHAIN.origin(key_path) == file


def test_a_chain_is_read_nearest_first() -> None:
    MINE.write_text('schema_version = 1\nextends = "base"\n')
    BASE.write_text('schema_version = 1\ndescription = "d"\n')
    assert [file.name for file, _ in read_chain(MINE).links] == ["mine.toml", "base.toml"]
    BASE.write_text('schema_version = 1\nextends = "mine"\n')
    with pytest.raises(ConfigError, match="goes in a circle: mine → base → mine"):
        read_chain(MINE)
