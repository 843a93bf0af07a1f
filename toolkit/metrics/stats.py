"""Statistics on raw samples. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """A median with its 95 % confidence interval [low, high] over n values, in the values' own unit."""

    median: float
    low: float
    high: float
    n: int

    @property
    def spread(self) -> float:
        """Half the interval's width relative to the median; 0 when there is nothing to spread."""
        return (self.high - self.low) / 2 / abs(self.median) if self.median else 0.0


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile (0-100), linear between closest ranks, as numpy's default.

    Raises ValueError when there are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100
    below, above = math.floor(position), math.ceil(position)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarize(values: Sequence[float], rounds: int = 2000) -> Summary:
    """Median and the percentile-bootstrap 95 % interval of the median (Efron 1979), with a fixed seed.

    With fewer than three values the interval is their range: resampling two numbers invents precision.
    Raises ValueError when there are no values.
    """
    median = percentile(values, 50)
    if len(values) < 3:
        return Summary(median, min(values), max(values), len(values))
    source = random.Random(0)
    medians = [percentile(source.choices(values, k=len(values)), 50) for _ in range(rounds)]
    return Summary(median, percentile(medians, 2.5), percentile(medians, 97.5), len(values))


class Summaries(Mapping[str, Summary]):
    """Summaries by name, of raw values or ready ones. A bootstrap takes milliseconds: an interval is computed once,
    when its summary is first asked for, and `median` needs none.

    No name may have an empty sequence of values.
    """

    def __init__(self, parts: Mapping[str, Sequence[float] | Summary]) -> None:
        self._parts = dict(parts)

    def __getitem__(self, name: str) -> Summary:
        part = self._parts[name]
        if not isinstance(part, Summary):
            part = self._parts[name] = summarize(part)
        return part

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def median(self, name: str) -> float:
        """The same figure as `self[name].median`. Raises KeyError when there is none of that name."""
        part = self._parts[name]
        return part.median if isinstance(part, Summary) else percentile(part, 50)


def ratio(new: Sequence[float], base: Sequence[float], rounds: int = 2000) -> Summary:
    """The median of `new` as a multiple of that of `base`, with the bootstrap's 95 % interval.

    Both are resampled independently, with a fixed seed. With fewer than three values on a side the interval is the
    widest that the values allow. `n` is the smaller count. Raises ValueError when a side is empty or not above 0.
    """
    if min(base, default=0) <= 0:
        raise ValueError("the base has to be above 0")
    middle = percentile(new, 50) / percentile(base, 50)
    n = min(len(new), len(base))
    if n < 3:
        return Summary(middle, min(new) / max(base), max(new) / min(base), n)
    source = random.Random(0)
    drawn = [
        percentile(source.choices(new, k=len(new)), 50) / percentile(source.choices(base, k=len(base)), 50)
        for _ in range(rounds)
    ]
    return Summary(middle, percentile(drawn, 2.5), percentile(drawn, 97.5), n)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; NaN for the error of a single value. Raises ValueError when there are none."""
    if not values:
        raise ValueError("no values")
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def perplexity(nll_sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """exp of the mean negative log-likelihood (nats a token), and its standard error.

    Each entry is one window of text; windows count as independent, and the error of the mean is carried
    through exp by the delta method. With one window the error is NaN.
    """
    total = sum(counts)
    mean = sum(nll_sums) / total
    value = math.exp(mean)
    if len(counts) < 2:
        return value, math.nan
    means = [nll / count for nll, count in zip(nll_sums, counts, strict=True)]
    variance = sum((window - mean) ** 2 for window in means) / (len(means) - 1)
    return value, value * math.sqrt(variance / len(means))
