"""Lines that no agent wrote, and messages that can't be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.impostors import impostor, said
from toolkit.agent.messages import LONGEST_LINE_BYTES, TurnEnd, decode, parse_event
from toolkit.agent.requests import TakeProbe
from toolkit.errors import AgentError


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"Welcome to Ubuntu!", "Expecting value"),
        (b'{"protocol": 1, "result": {"free_bytes": NaN}}', "NaN isn't a number"),
        (b'{"protocol": 1, "result": {"free_bytes": -Infinity}}', "-Infinity isn't a number"),
        (b'{"protocol": 1, "result": {"free_bytes": 1e999}}', "1e999 isn't a number"),
        (b'{"protocol": 1, "result": {"free_bytes": ' + b"9" * 100_000 + b"}}", "Exceeds the limit"),
        (b'{"protocol": 1, "result": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "nested too deeply"),
        (b'{"protocol": 1, "result": ' + b'{"a":' * 40 + b"1" + b"}" * 41, "nested too deeply"),
        (b'{"protocol": 1, "event": {"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"protocol": 1, "result": [1]}', "neither event nor result nor error"),
        (b'{"protocol": 1, "shell": {}}', "neither event nor result nor error"),
        (b'{"protocol": true, "result": {}} trailing', "Extra data"),
        (b'{"protocol": "1", "result": {}}', "another protocol"),
        (b'{"protocol": 1, "result": {"a": "\xff\xfe"}}', "can't decode"),
        (b'{"protocol": 1, "result": {"a": "' + b"x" * LONGEST_LINE_BYTES + b'"}}', "a line of more than"),
        (b"\x00" * 1000, ""),
        (b"", "Expecting value"),
    ],
)
def test_what_is_not_the_protocol_is_a_value_error(line: bytes, words: str) -> None:
    with pytest.raises(ValueError) as error:
        decode(line, 1)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "script",
    ["cat /dev/zero", "head -c 100000000 /dev/zero | tr '\\0' '['", "yes '{\"protocol\": 1'"],
    ids=["a line without an end", "a line of 100 MB", "lines without an end"],
)
def test_a_flood_is_ended(tmp_path: Path, script: str) -> None:
    with pytest.raises(AgentError, match="something that isn't its protocol"):
        impostor(tmp_path, script).ask(TakeProbe())


def test_nothing_that_is_said_steers_the_terminal(tmp_path: Path) -> None:
    error = {"code": "os", "message": "\x1b]0;owned\x07 \x9b31m\u200b disk\nfull" + "x" * 100_000, "hint": "a\rb"}
    with pytest.raises(AgentError) as caught:
        impostor(tmp_path, said(tmp_path, "error", error)).ask(TakeProbe())
    assert caught.value.message.startswith("here: \ufffd]0;owned\ufffd \ufffd31m\u200b disk\nfullxxx")
    assert len(caught.value.message) < 2100
    assert caught.value.hint == "a\ufffdb"


@pytest.mark.parametrize("error", [{"message": 3}, {"code": "os"}, {"code": [], "message": "m"}, {}])
def test_an_error_that_is_none_is_refused(tmp_path: Path, error: dict[str, Any]) -> None:
    with pytest.raises(AgentError, match="the agent's answer with an error can't be right"):
        impostor(tmp_path, said(tmp_path, "error", error)).ask(TakeProbe())


@pytest.mark.parametrize(
    "event",
    [
        {"type": "progress", "label": "push", "done": "all", "total": 1, "unit": "bytes"},
        {"type": "progress", "label": "push", "done": 1, "total": 1, "unit": "parsecs"},
        {"type": "waiting", "holder": {"by": "me", "op": "hold", "since_unix_s": 1e18}},
        {"type": "waiting"},
        {"type": "authorize", "source": -1},
        {"type": "authorize"},
        {"type": "token", "text": None},
        {"type": "turn_end", "prompt_tokens": 1, "token_ns": [5, 4], "stopped": True},
        {"type": "turn_end", "prompt_tokens": 1, "token_ns": [-1], "stopped": True},
        {"type": "score", "log_likelihood": "-1", "greedy": True},
    ],
)
def test_an_event_that_cannot_be_right_is_refused(tmp_path: Path, event: dict[str, Any]) -> None:
    with pytest.raises(AgentError, match=rf"here: the agent's answer \('{event['type']}'\) can't be right"):
        impostor(tmp_path, said(tmp_path, "event", event)).ask(TakeProbe())


def test_events_that_nobody_knows_are_passed_over() -> None:
    assert parse_event({"type": "mood", "is": "good"}, "here") is None
    assert parse_event({"type": ["token"]}, "here") is None
    end = parse_event({"type": "turn_end", "prompt_tokens": 1, "token_ns": [3, 3, 9], "stopped": False}, "here")
    assert end == TurnEnd(prompt_tokens=1, token_ns=(3, 3, 9), stopped=False)
