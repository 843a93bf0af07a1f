"""Runtime settings: the combinations that are allowed, and the equality of two runs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from toolkit.catalog.settings import RuntimeSettings


def test_what_is_left_open_is_chosen_for_the_device() -> None:
    assert RuntimeSettings().resolved(4) == RuntimeSettings(threads=4, chunk_size=0, ngram_size=0)
    drafting = RuntimeSettings(ngram_size=3).resolved(4)
    assert drafting == RuntimeSettings(threads=4, chunk_size=0, ngram_size=3, max_draft_tokens=4)


def test_a_draft_length_means_nothing_where_speculation_is_off() -> None:
    off = RuntimeSettings(ngram_size=0, max_draft_tokens=8)
    assert off.resolved(2) == RuntimeSettings().resolved(2)


def test_resolving_twice_changes_nothing() -> None:
    once = RuntimeSettings(chunk_size=64, ngram_size=2).resolved(4)
    assert once.resolved(8) == once


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, ""),
        ({"threads": 1, "chunk_size": 0, "ngram_size": 0}, "1 thread"),
        ({"threads": 4, "chunk_size": 128}, "4 threads, chunks of 128"),
        ({"threads": 4, "ngram_size": 3, "max_draft_tokens": 8}, "4 threads, 3-gram drafts of 8"),
        ({"ngram_size": 3}, "3-gram drafts of 4"),
    ],
)
def test_in_words(values: dict[str, int], text: str) -> None:
    assert RuntimeSettings(**values).text == text


@pytest.mark.parametrize(
    "values",
    [
        {"threads": 0},
        {"threads": True},
        {"chunk_size": -1},
        {"ngram_size": 1},
        {"ngram_size": 17},
        {"ngram_size": 3, "max_draft_tokens": 17},
        {"max_draft_tokens": 4},
        {"draft_tokens": 4},
    ],
)
def test_what_cannot_be_meant(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        RuntimeSettings(**values)
