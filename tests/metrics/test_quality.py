from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from toolkit.metrics.quality import HELD_OUT, Quality, headline


def figures(**changes: Any) -> Quality:
    facts: dict[str, Any] = {
        "text_sha256": "0" * 64,
        "tokens": 4088,
        "window_tokens": 512,
        "reference_identity": "1" * 64,
        "reference_arch": "x86_64",
        "arch": "x86_64",
        "ppl": 20.4,
        "ppl_error": 0.5,
        "reference_ppl": 20.0,
        "kld_mean": 0.01,
        "kld_mean_error": 0.001,
        "kld_p99": 0.1,
        "top1": 0.9,
        "top1_error": 0.01,
        "token_match": 0.5,
        "token_match_error": 0.05,
        "match_prompts": 16,
        "match_tokens": 64,
    }
    return Quality.model_validate(facts | changes)


def test_the_increase_is_relative_to_the_reference() -> None:
    assert figures(ppl=20.4, reference_ppl=20.0).ppl_increase == pytest.approx(0.02)


def test_greedy_tokens_are_comparable_on_one_architecture_only() -> None:
    assert figures().match_comparable
    assert not figures(arch="aarch64").match_comparable


def test_the_shipped_text_is_shown_before_the_users_own() -> None:
    shipped, own, other = figures(ppl=1), figures(ppl=2), figures(ppl=3)
    assert headline({"a.txt": own, HELD_OUT: shipped}) == shipped
    assert headline({"b.txt": other, "a.txt": own}) == own
    assert headline({}) is None


def test_what_is_not_a_number_is_no_figure() -> None:
    with pytest.raises(ValidationError):
        figures(ppl=math.nan)
