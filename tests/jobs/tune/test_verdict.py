"""The Pareto front and the verdict on the best trial: pure functions of figures."""

from __future__ import annotations

import random

import pytest

from tests.support.figures import SAMPLE, make_report, make_run
from toolkit.jobs.tune.verdict import OBJECTIVES, Contender, front, judge
from toolkit.metrics import Report
from toolkit.metrics.report import Sample


def dominates(one: dict[str, float], other: dict[str, float]) -> bool:
    """A second definition, by figures: as good in both and better in one; small sizes and large decode_tps are good."""
    no_worse = one["bundle_bytes"] <= other["bundle_bytes"] and one["decode_tps"] >= other["decode_tps"]
    return no_worse and one != other


def clouds() -> list[list[dict[str, float]]]:
    source = random.Random(7)
    # Few distinct values make equal ones likely.
    return [
        [{"bundle_bytes": source.randint(1, 6), "decode_tps": source.randint(1, 6)} for _ in range(size)]
        for size in range(1, 40)
    ]


@pytest.mark.parametrize("points", clouds(), ids=len)
def test_the_front_is_what_nothing_dominates(points: list[dict[str, float]]) -> None:
    kept = front(points)
    assert kept
    for index, point in enumerate(points):
        beaten = any(dominates(other, point) for other in points)
        assert (index in kept) != beaten
    # A kept point dominates each point that isn't kept.
    for index, point in enumerate(points):
        assert index in kept or any(dominates(points[other], point) for other in kept)


@pytest.mark.parametrize("points", clouds()[::5], ids=len)
def test_the_front_is_of_the_points_and_not_of_their_order(points: list[dict[str, float]]) -> None:
    mixed = points.copy()
    random.Random(1).shuffle(mixed)
    assert sorted(map(str, (points[i] for i in front(points)))) == sorted(map(str, (mixed[i] for i in front(mixed))))


def test_nothing_has_no_front() -> None:
    assert front([]) == []


def test_a_figure_that_some_lack_decides_nothing() -> None:
    assert front([{"ttft_ms": 2, "kld_mean": None}, {"ttft_ms": 1, "kld_mean": 0.5}]) == [1]
    assert front([{"ttft_ms": 2}, {"ttft_ms": 1, "kld_mean": 0.5}]) == [1]


def sample(decode_tps: float) -> Sample:
    gap = round(1e9 / decode_tps)
    return SAMPLE.model_copy(update={"token_ns": [200_000_000 + i * gap for i in range(5)]})


def at(*rates: float) -> Report:
    return make_report([make_run(samples=[sample(rate) for rate in rates])])


DEFAULT = Contender("int4-a with 2 threads", at(10, 10.1, 9.9, 10, 10.2), 0.01)
DECODE = OBJECTIVES["decode_tps"]


def test_a_clear_advantage_is_recommended_with_its_spread_and_its_cost() -> None:
    verdict = judge(DECODE, Contender("int4-b with 4 threads", at(12, 12.1, 11.9, 12, 12.2), 0.008), DEFAULT)
    assert verdict.better
    assert verdict.sentence == (
        "int4-b with 4 threads decodes 1.20× (95 % CI 1.18–1.22, n=5) as fast as the default, "
        "int4-a with 2 threads, at +0.8% perplexity"
    )


def test_an_advantage_within_the_noise_is_none() -> None:
    verdict = judge(DECODE, Contender("int4-b", at(8, 10.3, 12, 10.4, 9)), DEFAULT)
    assert not verdict.better
    assert verdict.sentence.startswith("Keep the default, int4-a with 2 threads: int4-b decodes 1.03× (95 % CI 0.8")
    assert verdict.sentence.endswith("as fast as it, which is within the noise")


def test_what_did_well_once_and_not_again_is_not_recommended() -> None:
    verdict = judge(DECODE, Contender("int4-b", at(8, 8.1, 7.9)), DEFAULT)
    assert not verdict.better
    assert verdict.sentence.endswith("as fast as it, measured once more")


def test_one_value_each_is_no_verdict() -> None:
    verdict = judge(DECODE, Contender("int4-b", at(20)), Contender("int4-a", at(10)))
    assert not verdict.better
    assert verdict.sentence == (
        "Keep the default, int4-a: int4-b decodes 2.00× (measured once) as fast as it, "
        "and one value of each can't be told from chance"
    )


def test_less_memory_is_better() -> None:
    small, large = (make_report([make_run(rss_peak_bytes=n * 1_000_000 + i) for i in range(3)]) for n in (500, 1000))
    memory = OBJECTIVES["memory"]
    assert judge(memory, Contender("small", small), Contender("large", large)).sentence == (
        "small peaks at 0.50× (95 % CI 0.50–0.50, n=3) of the memory of the default, large"
    )
    assert not judge(memory, Contender("large", large), Contender("small", small)).better


def test_the_default_may_be_the_best() -> None:
    verdict = judge(DECODE, DEFAULT, DEFAULT)
    assert not verdict.better
    assert verdict.sentence == (
        "Keep the default, int4-a with 2 threads: nothing measured is better; "
        "it decodes at 10.0 tok/s (95 % CI 9.9–10.2, n=5), at +1.0% perplexity"
    )


def test_without_a_default_the_figure_stands_alone() -> None:
    verdict = judge(DECODE, DEFAULT, None, "the default has no figures: it doesn't fit")
    assert verdict.better and verdict.ratio is None
    assert verdict.sentence.endswith("at +1.0% perplexity; the default has no figures: it doesn't fit")
