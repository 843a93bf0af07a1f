"""Rows of reports, with columns of quality figures where a bundle has any."""

from __future__ import annotations

from tests.support.figures import figures, make_report, make_run
from toolkit.cli.tables import as_markdown, columns, report_rows
from toolkit.metrics import Report


def report(**changes: object) -> Report:
    environment = {"board": "Pi 5", "cores": 4, "os_name": "Debian", "python": "3.11.2", "arch": "aarch64"}
    return make_report([make_run()]).model_copy(update={"environment": environment, **changes})


def test_quality_stands_beside_a_row_that_has_it() -> None:
    rows = report_rows([report(quality={"held-out": figures()}), report()])
    assert columns([report(quality={"held-out": figures()})])[-3:] == ["ppl\nincrease", "KLD", "token\nmatch"]
    assert rows[0][-3:] == ["+2.00%", "0.0100", "50.0%"]
    assert rows[1][-3:] == ["–", "–", "–"]


def test_without_figures_there_are_no_columns_for_them() -> None:
    assert "KLD" not in columns([report()])
    assert len(report_rows([report()])[0]) == len(columns([report()]))
    assert "quality" not in as_markdown([report()])


def test_a_footnote_says_where_the_figures_are_from() -> None:
    text = as_markdown([report(quality={"held-out": figures(token_match=None, match_tokens=0)})])
    assert "quality: 4088 tokens, beside fp32, on x86_64" in text
    assert "greedy" not in text
