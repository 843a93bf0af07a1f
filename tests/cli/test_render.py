from __future__ import annotations

import json
import re
import unicodedata
from io import BytesIO, StringIO, TextIOWrapper

import click
import pytest
import tomli_w
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


EVIL = "\x1b[31m\x9b1m\x7f\u202e\u2028\r\b\ud800"
SHOWN = r"\x1b[31m\x9b1m\x7f\u202e\u2028\r\x08\ud800"


def steering(text: str) -> list[str]:
    return [sign for sign in text if sign != "\n" and unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def evil_service() -> Service[None]:
    yield Step(f"step {EVIL}\n> forged")
    yield Step(EVIL, skipped=True)
    yield Warning_(f"careful {EVIL}\nwarning: forged")
    yield DeviceEvent(f"pi{EVIL}", Step(EVIL))
    yield DeviceEvent(f"pi{EVIL}", Progress(EVIL, 1, 2, "bytes"))
    yield DeviceEvent("pi1", Warning_(EVIL))
    yield DeviceEvent("pi1", Ended(2.0, f"{EVIL}\nerror: forged"))
    yield Progress(f"[red]{EVIL}", 1, 2, "bytes")
    yield Token("a\tb\r\nc\x1b")
    yield Token(f"[31m{EVIL}\n")


def test_what_services_say_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    render._stderr.cache_clear()
    render.follow(evil_service())
    out, err = capsys.readouterr()
    render._stderr.cache_clear()
    assert out == f"a\tb\nc\\x1b[31m{SHOWN}\n"
    assert err.splitlines() == [
        f"> step {SHOWN}",
        "  > forged",
        f"= {SHOWN} (already done)",
        f"warning: careful {SHOWN}",
        "         warning: forged",
        f"> pi{SHOWN}: {SHOWN}",
        f"warning: pi1: {SHOWN}",
        f"✗ pi1, 2.0 s: failed: {SHOWN}",
        "  error: forged",
    ]


def test_live_bars_on_a_terminal_show_no_escape_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=300, color_system=None)
    monkeypatch.setattr(render, "_stderr", lambda: console)
    render.follow(evil_service())
    drawn = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", screen.getvalue())  # rich's own movements
    assert f"  [red]{SHOWN} " in drawn and f"  pi{SHOWN} " in drawn
    assert set(steering(drawn)) <= {"\r"}


def test_results_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    render.table([f"a{EVIL}"], [[f"{EVIL}\nsecond row"], [(EVIL, "two")]], title=EVIL)
    render.line(EVIL, None, f"{EVIL}\nforged")
    render.text(f"{EVIL}\n")
    render.toml(tomli_w.dumps({"a": EVIL.replace("\ud800", "")}))
    render.print_json({"a": [EVIL]})
    out = capsys.readouterr().out
    assert not steering(out)
    assert out.count(SHOWN) == 7
    assert f"{SHOWN}\\nforged\n" in out and f" {SHOWN}\\nsecond row" in out
    assert json.loads(out[out.index("{") :]) == {"a": [EVIL]}


def test_notes_and_errors_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    render._stderr.cache_clear()
    render.note(f"{EVIL}\nforged")
    render.complain(f"{EVIL}\nerror: forged", f"{EVIL}\n hint: forged")
    render.complain_of_usage(click.BadParameter(f"{EVIL}\nerror: forged"))
    err = capsys.readouterr().err
    render._stderr.cache_clear()
    assert err.splitlines() == [
        f"{SHOWN}\\nforged",
        f"error: {SHOWN}",
        "       error: forged",
        f" hint: {SHOWN}",
        "        hint: forged",
        f"Error: Invalid value: {SHOWN}",
        "       error: forged",
    ]


def test_questions_steer_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"  line \r\n"), "utf-8"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.prompt", lambda text, **_: asked.append(text) or "secret")
    ask = render.prompt_secret()
    assert ask is not None
    assert (ask(f"Password {EVIL}\n"), render.ask_line(EVIL)) == ("secret", "  line ")
    assert asked == [f"Password {SHOWN}\\n"]
    assert capsys.readouterr().err == SHOWN
