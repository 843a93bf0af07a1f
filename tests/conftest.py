"""No test reads or writes the developer's own profiles, caches or reports."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder and edgephi folders of the test's own; returns the working folder."""
    work = tmp_path / "work"
    work.mkdir()
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"EDGEPHI_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "200")
    return work
