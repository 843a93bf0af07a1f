"""The verdict on measured configurations: their Pareto front, and the sentence about the best of them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from toolkit.metrics import Report, Summary
from toolkit.metrics.report import decode_tps, ttft_ms
from toolkit.metrics.stats import ratio, summarize
from toolkit.units import memory_text

# More of these figures is better; of every other figure, less is.
MORE_IS_BETTER = frozenset({"decode_tps"})


@dataclass(frozen=True)
class Objective:
    """The goal of a search. `metric` is a metric of reports; `compared` words a ratio."""

    metric: str
    text: Callable[[float], str]
    values: Callable[[Report], list[float]]
    does: str
    compared: str

    @property
    def maximize(self) -> bool:
        return self.metric in MORE_IS_BETTER


OBJECTIVES = {
    "decode_tps": Objective(
        metric="decode_tps",
        text=lambda tps: f"{tps:,.1f} tok/s",
        values=lambda report: [decode_tps(sample) for run in report.runs for sample in run.samples],
        does="decodes at",
        compared="decodes {ratio} as fast as",
    ),
    "ttft": Objective(
        metric="ttft_ms",
        text=lambda ms: f"{ms:,.1f} ms",
        values=lambda report: [ttft_ms(sample) for run in report.runs for sample in run.samples],
        does="has its first token after",
        compared="needs {ratio} of the time to the first token of",
    ),
    "memory": Objective(
        metric="rss_peak_bytes",
        text=memory_text,
        values=lambda report: [run.rss_peak_bytes for run in report.runs if run.rss_peak_bytes],
        does="peaks at",
        compared="peaks at {ratio} of the memory of",
    ),
}


@dataclass(frozen=True)
class Contender:
    """A configuration with its report; `ppl_increase` is relative to fp32, None where it wasn't measured."""

    name: str
    report: Report
    ppl_increase: float | None = None

    @property
    def cost(self) -> str:
        return "" if self.ppl_increase is None else f", at {self.ppl_increase:+.1%} perplexity"


@dataclass(frozen=True)
class Recommendation:
    """One sentence; `better` tells if the best is really better than the default; `ratio` is best to default."""

    sentence: str
    better: bool
    ratio: Summary | None = None


def front(points: Sequence[Mapping[str, float | None]]) -> list[int]:
    """The indices of the Pareto front: the points that no other point dominates.

    One point dominates another if it is at least as good in every figure and better in one. Figures that some point
    lacks aren't compared. Equal points don't dominate each other.
    """
    names = set(points[0]).union(*points) if points else set()
    shared = [name for name in sorted(names) if all(point.get(name) is not None for point in points)]
    costs = [[_cost(name, point[name]) for name in shared] for point in points]
    return [index for index, mine in enumerate(costs) if not any(_dominates(other, mine) for other in costs)]


def _cost(name: str, value: float | None) -> float:
    assert value is not None
    return -value if name in MORE_IS_BETTER else value


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def judge(objective: Objective, best: Contender, default: Contender | None, why_no_default: str = "") -> Recommendation:
    """Recommend the best one, but only where its advantage is outside the noise; else the default.

    `why_no_default` goes into the sentence where the default has no figures.
    """
    if default is None:
        return Recommendation(f"{best.name} {_absolute(objective, best)}; {why_no_default}", better=True)
    if best == default:
        sentence = f"Keep the default, {default.name}: nothing measured is better; it {_absolute(objective, default)}"
        return Recommendation(sentence, better=False)
    found = ratio(objective.values(best.report), objective.values(default.report))
    interval = _interval(found, f"{found.low:,.2f}", f"{found.high:,.2f}")
    compared = objective.compared.format(ratio=f"{found.median:.2f}× ({interval})")
    above, below = (found.low > 1, found.high < 1) if objective.maximize else (found.high < 1, found.low > 1)
    if above and found.n > 1:
        return Recommendation(
            f"{best.name} {compared} the default, {default.name}{best.cost}", better=True, ratio=found
        )
    if found.n < 2:
        why = "and one value of each can't be told from chance"
    else:
        why = "measured once more" if below else "which is within the noise"
    sentence = f"Keep the default, {default.name}: {best.name} {compared} it, {why}"
    return Recommendation(sentence, better=False, ratio=found)


def _absolute(objective: Objective, contender: Contender) -> str:
    found = summarize(objective.values(contender.report))
    median, low, high = (objective.text(value) for value in (found.median, found.low, found.high))
    unit = median[median.index(" ") :]
    if low.endswith(unit) and high.endswith(unit):
        low, high = low.removesuffix(unit), high.removesuffix(unit)
    return f"{objective.does} {median} ({_interval(found, low, high)}){contender.cost}"


def _interval(found: Summary, low: str, high: str) -> str:
    if found.n < 2:
        return "measured once"
    kind = "95 % CI" if found.n > 2 else "range"
    return f"{kind} {low}–{high}, n={found.n}"
