"""The lock between processes."""

from __future__ import annotations

from pathlib import Path

from toolkit.files import try_lock


def test_one_at_a_time_until_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("ab") as first, path.open("ab") as second:
        assert try_lock(first)
        assert not try_lock(second)
    with path.open("ab") as third:
        assert try_lock(third)
