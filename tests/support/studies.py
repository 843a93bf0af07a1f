"""A search space of recipes and settings."""

from __future__ import annotations

from toolkit.catalog.settings import RuntimeSettings
from toolkit.jobs.tune.proposal import Point, Space

SPACE = Space(("a", "b"), threads=(1, 2), chunk_sizes=(0, 64), ngram_sizes=(0, 3), draft_tokens=(4,))
DEFAULT = Point("a", RuntimeSettings().resolved(2))
