"""Render a chat template: `python -m toolkit.optimize.chat_child`, with a request on stdin and the answer on stdout.

A template runs in jinja's sandbox, and in a process of its own that has little time and memory: a sandbox limits what
a template reaches, not how long it works. The module imports little, for it starts with each build.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

LIMIT_S = 10
_LIMIT_BYTES = 2 << 30
_LONGEST_END = 4096
_QUESTION, _ANSWER, _NEXT = "edgephi0question", "edgephi0answer", "edgephi0next"


def render(template: str, named: Mapping[str, str]) -> dict[str, str]:
    """The texts `before` the question and `after` the answer, or the `error`."""
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
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
    request = json.load(sys.stdin.buffer)
    sys.stdout.write(json.dumps(render(request["template"], request["named"])))


if __name__ == "__main__":
    _main()
