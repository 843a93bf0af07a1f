"""The end of an assistant's turn, as a model's chat template renders it.

A template is a program that comes with the model: `chat_child` runs it in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

from toolkit.catalog.tokens import Tokens
from toolkit.config import import_root
from toolkit.localhost import without_secrets
from toolkit.optimize.chat_child import LIMIT_S
from toolkit.untrusted import read_json


class NoEnd(Exception):
    """No special token closes a turn; the text says why."""


def closing_token(tokens: Tokens) -> str:
    """The added token that closes an assistant's turn. Raises NoEnd when there is none or the template fails."""
    if tokens.template is None:
        raise NoEnd("the tokenizer has no chat template")
    before, after = _rendered(tokens.template, tokens.named)
    found = _leading(after, tokens)
    if found is None:
        raise NoEnd("its chat template closes an assistant's turn with no special token")
    if found == _last(before, tokens):
        raise NoEnd(f"its chat template closes no assistant's turn: the next one begins ('{found}')")
    return found


def _leading(text: str, tokens: Tokens) -> str | None:
    """The added token that a text begins with, blanks aside."""
    text = text.lstrip()
    return max((token for token in tokens.added if token.strip() and text.startswith(token)), key=len, default=None)


def _last(text: str, tokens: Tokens) -> str | None:
    """The added token that opens a turn: the last one in the text before what the user says."""
    places = {token: text.rfind(token) for token in tokens.added if token.strip()}
    return max((token for token, place in places.items() if place >= 0), key=places.__getitem__, default=None)


def _rendered(template: str, named: Mapping[str, str]) -> tuple[str, str]:
    """The rendered texts before the first question and behind the answer to it. Raises NoEnd."""
    request = json.dumps({"template": template, "named": dict(named)}).encode()
    paths = [str(import_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        child = subprocess.run(
            [sys.executable, "-m", "toolkit.optimize.chat_child"],
            input=request,
            capture_output=True,
            timeout=LIMIT_S,
            env=without_secrets() | {"PYTHONPATH": os.pathsep.join(paths)},
        )
    except subprocess.TimeoutExpired:
        raise NoEnd(f"its chat template isn't rendered within {LIMIT_S} s") from None
    try:
        answer = read_json(child.stdout, controls=True)
    except ValueError:
        raise NoEnd("its chat template can't be rendered: it takes too much memory") from None
    if "error" in answer:
        raise NoEnd(f"its chat template can't be rendered: {answer['error']}")
    return answer["before"], answer["after"]
