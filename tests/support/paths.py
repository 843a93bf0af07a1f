"""Paths of the repository, the same for tests in every folder."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).parents[2]
DATA = REPO / "tests" / "data"
