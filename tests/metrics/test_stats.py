from __future__ import annotations

import math
import random

import pytest

from toolkit.metrics import Summary
from toolkit.metrics.stats import Summaries, mean_and_error, percentile, perplexity, ratio, summarize


def test_percentile_agrees_with_known_values() -> None:
    values = [15.0, 20.0, 35.0, 40.0, 50.0]
    assert percentile(values, 0) == 15
    assert percentile(values, 50) == 35
    assert percentile(values, 40) == pytest.approx(29.0)
    assert percentile(values, 100) == 50


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_summary_of_equal_values_has_no_spread() -> None:
    summary = summarize([3.0] * 9)
    assert (summary.median, summary.low, summary.high, summary.n, summary.spread) == (3, 3, 3, 9, 0)


def test_summary_covers_the_median_and_is_repeatable() -> None:
    values = [10.0, 11.0, 9.5, 10.2, 10.4, 30.0]
    summary = summarize(values)
    assert summary.low <= summary.median <= summary.high
    assert summary == summarize(values)


def test_two_values_give_their_range_and_no_invented_precision() -> None:
    summary = summarize([1.0, 2.0])
    assert (summary.low, summary.high) == (1, 2)


def test_perplexity_of_a_uniform_guess_is_the_vocabulary_size() -> None:
    value, error = perplexity([100 * math.log(3072)] * 4, [100] * 4)
    assert value == pytest.approx(3072)
    assert error == pytest.approx(0, abs=1e-6)


def test_perplexity_error_shrinks_with_the_root_of_the_windows() -> None:
    few = perplexity([10.0, 12.0], [5, 5])
    many = perplexity([10.0, 12.0] * 50, [5, 5] * 50)
    assert few[0] == pytest.approx(many[0])
    assert many[1] == pytest.approx(few[1] * math.sqrt(1 / 99), rel=0.01)


def test_perplexity_of_one_window_has_no_error() -> None:
    assert math.isnan(perplexity([10.0], [5])[1])


def test_mean_and_error() -> None:
    mean, error = mean_and_error([1.0, 2.0, 3.0])
    assert (mean, error) == (2, pytest.approx(1 / math.sqrt(3)))
    assert math.isnan(mean_and_error([4.0])[1])
    with pytest.raises(ValueError, match="no values"):
        mean_and_error([])


def test_a_ratio_of_medians_with_its_interval() -> None:
    found = ratio([20.0, 22.0, 21.0, 19.0], [10.0, 11.0, 10.5, 9.5])
    assert found.median == 2
    assert 1.6 < found.low < 2 < found.high < 2.4
    assert found == ratio([20.0, 22.0, 21.0, 19.0], [10.0, 11.0, 10.5, 9.5])


def test_a_ratio_of_the_same_values_cannot_be_told_from_one() -> None:
    values = [9.0, 10.0, 11.0, 12.0, 8.0]
    found = ratio(values, values)
    assert found.median == 1
    assert found.low < 1 < found.high


def test_a_ratio_of_few_values_is_as_wide_as_they_allow() -> None:
    found = ratio([20.0, 24.0], [10.0, 8.0])
    assert (found.low, found.high, found.n) == (2, 3, 2)


def test_a_ratio_needs_a_base_above_zero() -> None:
    for base in ([], [0.0, 1.0], [-1.0]):
        with pytest.raises(ValueError, match="above 0"):
            ratio([1.0], base)


def test_a_median_alone_is_the_median_of_the_summary() -> None:
    columns = {str(n): [random.Random(n).gauss(100, 10) for _ in range(n)] for n in (1, 2, 3, 8, 15)}
    parts = {**columns, "ready": Summary(4.0, 3.0, 5.0, 7)}
    alone, summed = Summaries(parts), Summaries(parts)
    assert [alone.median(name) for name in parts] == [summed[name].median for name in parts]
    assert dict(summed) == {**{name: summarize(values) for name, values in columns.items()}, "ready": parts["ready"]}
    with pytest.raises(KeyError):
        alone.median("none")


def test_a_summary_is_computed_once_and_only_when_it_is_asked_for() -> None:
    found = Summaries({"values": [1.0, 2.0, 4.0], "empty": []})  # an interval of no values would raise
    assert list(found) == ["values", "empty"] and "empty" in found and "other" not in found and len(found) == 2
    assert found["values"] is found["values"]
    assert found.get("other") is None
