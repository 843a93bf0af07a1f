"""The trials of a search with the figures of their reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.jobs.tune.proposal import Point
from toolkit.jobs.tune.study import State, Trial
from toolkit.jobs.tune.verdict import Contender, front
from toolkit.metrics import Report, metrics
from toolkit.metrics.report import read_report, reports_dir
from toolkit.metrics.stats import Summaries

_FRONT = ("bundle_bytes", "rss_peak_bytes", "ttft_ms", "decode_tps", "ppl_increase", "kld_mean")


@dataclass(frozen=True)
class TrialRow:
    """One trial with its outcome. `figures` are the metrics of the report."""

    number: int
    point: Point
    state: State
    reason: str | None = None
    report: Report | None = None
    report_file: Path | None = None
    figures: Summaries = field(default_factory=lambda: Summaries({}))
    quality: Mapping[str, float] = field(default_factory=dict)
    on_front: bool = False


def rows_of(trials: Sequence[Trial]) -> list[TrialRow]:
    """A row for each trial, with its report where that is still kept, the Pareto front marked."""
    rows = [_row(trial) for trial in trials]
    measured = [row for row in rows if row.report]
    points = [{name: _figure(row, name) for name in _FRONT} for row in measured]
    best = {measured[index].number for index in front(points)}
    return [replace(row, on_front=row.number in best) for row in rows]


def _row(trial: Trial) -> TrialRow:
    facts = trial.facts
    if trial.state != "measured":
        return TrialRow(trial.number, trial.point, trial.state, facts["reason"])
    report = kept_report(facts["report"])
    if report is None:
        return TrialRow(trial.number, trial.point, "failed", f"its report {facts['report']} is gone")
    return TrialRow(
        number=trial.number,
        point=trial.point,
        state=trial.state,
        report=report,
        report_file=reports_dir() / facts["report"],
        figures=metrics(report),
        quality=facts["quality"],
    )


def kept_report(name: str) -> Report | None:
    """A report by its file's name; None when it is gone or can't be read."""
    try:
        return read_report(reports_dir() / name)
    except ConfigError:
        return None


def _figure(row: TrialRow, name: str) -> float | None:
    if name in row.figures:
        return row.figures.median(name)
    if name == "bundle_bytes" and row.report:
        return row.report.bundle_bytes
    return row.quality.get(name)


def contender(row: TrialRow, report: Report | None) -> Contender:
    assert report is not None
    return Contender(row.point.text, report, row.quality.get("ppl_increase"))
