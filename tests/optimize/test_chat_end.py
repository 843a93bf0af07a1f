"""toolkit.optimize.chat_end: the token that closes an assistant's turn, from templates as published and as attacks."""

from __future__ import annotations

import time

import pytest

from toolkit.catalog.tokens import Tokens
from toolkit.optimize.chat_end import NoEnd, closing_token

ADDED = {
    token: number
    for number, token in enumerate(
        [
            "<s>",
            "</s>",
            "<|endoftext|>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|end|>",
            "<|im_start|>",
            "<|im_end|>",
        ]
    )
}
NAMED = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
MINI_2024 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' + '\n' + "
    "message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}{% elif (message['role'] == 'assistant') %}"
    "{{message['content'] + '<|end|>' + '\n'}}{% endif %}{% endfor %}"
)
MINI = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% endfor %}"
)
BY_EOS = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def tokens(template: str | None) -> Tokens:
    return Tokens(ADDED, NAMED, template)


@pytest.mark.parametrize(
    ("template", "end"),
    [(MINI_2024, "<|end|>"), (MINI, "<|end|>"), (CHATML, "<|im_end|>"), (BY_EOS, "<|endoftext|>")],
)
def test_closing_token_of_templates_as_published(template: str, end: str) -> None:
    assert closing_token(tokens(template)) == end


def no_end(template: str | None) -> str:
    with pytest.raises(NoEnd) as caught:
        closing_token(tokens(template))
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "the tokenizer has no chat template"),
        (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}",
            "its chat template closes an assistant's turn with no special token",
        ),
        (
            "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '\n' }}{% endfor %}",
            "its chat template closes no assistant's turn: the next one begins ('<|user|>')",
        ),
        ("{{ raise_exception('only tools') }}", "its chat template can't be rendered: TemplateError: only tools"),
        ("{% for %}", "its chat template can't be rendered: TemplateSyntaxError: "),
        ("{{ messages[9].content.x }}", "its chat template can't be rendered: UndefinedError: "),
        ("{{ 1 / 0 }}", "its chat template can't be rendered: ZeroDivisionError: "),
        ("hello", "its chat template can't be rendered: it leaves out what was said"),
        ("{{ messages[0].content }}", "its chat template can't be rendered: it leaves out what was said"),
        ("{{ ''.__class__.__mro__ }}", "its chat template can't be rendered: SecurityError: "),
        ("{{ 'x' * 9999999999 }}", "its chat template can't be rendered: "),
    ],
)
def test_templates_without_an_end(template: str | None, why: str) -> None:
    assert no_end(template).startswith(why)


def test_template_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.optimize.chat_end.LIMIT_S", 1)
    began = time.monotonic()
    forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    assert no_end(forever) == "its chat template isn't rendered within 1 s"
    assert time.monotonic() - began < 10
