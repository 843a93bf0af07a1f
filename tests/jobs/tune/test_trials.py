"""Trials and the figures of their reports."""

from __future__ import annotations

from tests.support.figures import SAMPLE, make_report, make_run
from toolkit.catalog.settings import RuntimeSettings
from toolkit.jobs.tune.proposal import Point
from toolkit.jobs.tune.study import Trial
from toolkit.jobs.tune.trials import rows_of
from toolkit.metrics.report import report_path, save_report

POINT = Point("int4-a", RuntimeSettings(threads=2))


def measured(number: int, rss: int, ppl_increase: float) -> Trial:
    report = make_report([make_run(rss_peak_bytes=rss, samples=[SAMPLE, SAMPLE])])
    report = report.model_copy(update={"settings": RuntimeSettings(threads=number + 1)})
    save_report(report)
    quality = {"ppl": 30.0, "ppl_increase": ppl_increase, "kld_mean": ppl_increase}
    return Trial(number, POINT, "measured", {"report": report_path(report).name, "quality": quality, "value": 1.0})


def test_the_front_is_marked_among_what_was_measured() -> None:
    trials = [
        measured(0, 1000, 0.02),
        measured(1, 2000, 0.01),
        measured(2, 2000, 0.03),
        Trial(3, POINT, "pruned", {"reason": "+5% perplexity"}),
        Trial(4, POINT, "failed", {"reason": "no wheel"}),
        Trial(5, POINT, "measured", {"report": "gone.json", "quality": {}, "value": 1.0}),
    ]
    rows = rows_of(trials)
    assert [row.on_front for row in rows] == [True, True, False, False, False, False]
    assert [row.state for row in rows[3:]] == ["pruned", "failed", "failed"]
    assert rows[5].reason == "its report gone.json is gone"
    assert rows[0].figures["rss_peak_bytes"].median == 1000
    assert rows[0].report is not None and rows[3].report is None


def test_without_quality_the_rest_decides() -> None:
    first, second = measured(0, 1000, 0.02), measured(1, 2000, 0.01)
    for trial in (first, second):
        trial.facts["quality"] = {}
    assert [row.on_front for row in rows_of([first, second])] == [True, False]
