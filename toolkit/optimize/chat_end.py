"""The end of an assistant's turn, as a model's chat template renders it.

A template is a program that comes with the model. It runs in jinja's sandbox, and in a process of its own
(`python -m toolkit.optimize.chat_end`) that has little time and memory: a sandbox limits what a template reaches, not
how long it works.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from toolkit.catalog.tokens import Tokens
from toolkit.config import import_root
from toolkit.localhost import without_secrets
from toolkit.untrusted import read_json

_LIMIT_S, _LIMIT_BYTES = 10, 2 << 30
_LONGEST_END = 4096
_QUESTION, _ANSWER, _NEXT = "edgephi0question", "edgephi0answer", "edgephi0next"


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
            [sys.executable, "-m", "toolkit.optimize.chat_end"],
            input=request,
            capture_output=True,
            timeout=_LIMIT_S,
            env=without_secrets() | {"PYTHONPATH": os.pathsep.join(paths)},
        )
    except subprocess.TimeoutExpired:
        raise NoEnd(f"its chat template isn't rendered within {_LIMIT_S} s") from None
    try:
        answer = read_json(child.stdout, any_text=True)
    except ValueError:
        raise NoEnd("its chat template can't be rendered: it takes too much memory") from None
    if "error" in answer:
        raise NoEnd(f"its chat template can't be rendered: {answer['error']}")
    return answer["before"], answer["after"]


def render(template: str, named: Mapping[str, str]) -> dict[str, str]:
    """In the child: the texts `before` the question and `after` the answer, or the `error`."""
    from jinja2 import TemplateError

    conversation = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _NEXT},
    ]
    try:
        compiled = _sandbox().from_string(template)
        text = compiled.render(messages=conversation, add_generation_prompt=False, tools=None, **named)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as exc:
        return {"error": f"{type(exc).__name__}: {exc}"[:200]}
    before, question, rest = text.partition(_QUESTION)
    _, answer, after = rest.partition(_ANSWER)
    if not question or not answer:
        return {"error": "it leaves out what was said"}
    return {"before": before[-_LONGEST_END:], "after": after[:_LONGEST_END]}


def _sandbox() -> Any:
    """Jinja as transformers sets it up for chat templates."""
    import datetime

    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def parse(_extension: Any, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    # Trainers' templates mark the part that the model writes.
    generation = type("Generation", (Extension,), {"tags": {"generation"}, "parse": parse})

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return environment


def _main() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_LIMIT_BYTES, _LIMIT_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (_LIMIT_S, _LIMIT_S))
    request = json.load(sys.stdin.buffer)
    sys.stdout.write(json.dumps(render(request["template"], request["named"])))


if __name__ == "__main__":
    _main()
