from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from toolkit.cli import render
from toolkit.events import DeviceEvent, Ended, Progress, Service, Step, Token, Warning_


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (None, "–"),
        (12, "12 B"),
        (1500, "1.5 kB"),
        (5_960_000, "5.96 MB"),
        (2_782_300_000, "2.78 GB"),
        (2.7e14, "270 TB"),
    ],
)
def test_size(n_bytes: float | None, text: str) -> None:
    assert render.size(n_bytes) == text


@pytest.mark.parametrize(("n_bytes", "text"), [(None, "–"), (12, "12 B"), (91_200_000, "87 MiB"), (8 * 2**30, "8 GiB")])
def test_memory(n_bytes: float | None, text: str) -> None:
    assert render.memory(n_bytes) == text


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (12.3, "12 s"), (200.4, "3 min 20 s"), (7250, "2 h 1 min"), (190_000, "2 d 5 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


def two_devices() -> Service[None]:
    yield Step("wave 1 of 1, 2 devices: pi1, pi2")
    yield DeviceEvent("pi1", Step("pi1: probe"))
    yield DeviceEvent("pi2", Step("resolve wheels"))
    yield DeviceEvent("pi1", Progress("push", 1, 2, "bytes"))
    yield DeviceEvent("pi1", Step("pi1: x is installed", skipped=True))
    yield DeviceEvent("pi2", Warning_("pi2: careful"))
    yield DeviceEvent("pi2", Ended(2.0, "pi2: [off]"))
    yield DeviceEvent("pi1", Ended(12.0))


def test_devices_are_lines_with_their_names_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    render._stderr.cache_clear()
    render.follow(two_devices())
    err = capsys.readouterr().err
    render._stderr.cache_clear()
    assert err.splitlines() == [
        "> wave 1 of 1, 2 devices: pi1, pi2",
        "> pi1: probe",
        "> pi2: resolve wheels",
        "= pi1: x is installed (already done)",
        "warning: pi2: careful",
        "✗ pi2, 2.0 s: failed: [off]",
        "✓ pi1, 12 s: done",
    ]


def test_devices_have_a_live_line_each_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=100, highlight=False, color_system=None)
    monkeypatch.setattr(render, "_stderr", lambda: console)
    lines = render._DeviceLines()
    for event in two_devices():
        if isinstance(event, DeviceEvent):
            lines.draw(event.target, event.event)
        if lines._bars is not None:
            lines._bars.refresh()
    assert lines._bars is None
    shown = screen.getvalue()
    assert "pi1" in shown and "resolve wheels" in shown and "x is installed" in shown
    assert "✗ pi2, 2.0 s: failed: [off]" in shown and "✓ pi1, 12 s: done" in shown


def test_a_table_in_a_pipe_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    render.table(["name", "tok/s"], [[long, "1"], ["short", "100"]], title="t")
    lines = capsys.readouterr().out.splitlines()
    assert any(long in line for line in lines)
    assert lines[-2].rstrip().endswith("100")


def test_markdown_escapes_what_would_break_a_row() -> None:
    assert render.markdown_table(["a\nb"], [["x|y"]]) == "| a b |\n|---|\n| x\\|y |"
