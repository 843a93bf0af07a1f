from __future__ import annotations

import pytest

from toolkit.cli import render
from toolkit.events import Progress, Service, Step, Token, Warning_


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(None, "–"), (12, "12 B"), (1500, "1.5 kB"), (5_960_000, "5.96 MB"), (2_782_300_000, "2.78 GB")],
)
def test_size(n_bytes: float | None, text: str) -> None:
    assert render.size(n_bytes) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "0"), (0.0612, "0.06"), (9.157, "9.16"), (43.48, "43.5"), (17414.2, "17414")]
)
def test_figure_has_three_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert render.figure(value) == text


def test_follow_draws_on_stderr_and_returns_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    def service() -> Service[int]:
        yield Step("first [not markup]")
        yield Progress("bytes", 1, 2, "bytes")
        yield Step("second", skipped=True)
        yield Warning_("careful")
        yield Token("word")
        return 7

    render._stderr.cache_clear()
    assert render.follow(service()) == 7
    out, err = capsys.readouterr()
    render._stderr.cache_clear()
    assert out == "word"
    assert err.splitlines() == ["> first [not markup]", "= second (already done)", "warning: careful"]


def test_a_table_in_a_pipe_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    render.table(["name", "tok/s"], [[long, "1"], ["short", "100"]], title="t")
    lines = capsys.readouterr().out.splitlines()
    assert any(long in line for line in lines)
    assert lines[-2].rstrip().endswith("100")


def test_markdown_escapes_what_would_break_a_row() -> None:
    assert render.markdown_table(["a\nb"], [["x|y"]]) == "| a b |\n|---|\n| x\\|y |"
