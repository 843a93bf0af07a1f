from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from tests.support.figures import figures
from toolkit.metrics import HELD_OUT
from toolkit.metrics.quality import headline


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
