"""Where things of the repository lie, for tests in whatever folder."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).parents[2]
DATA = REPO / "tests" / "data"
