"""A conversation's texts on the device, in the real runtime's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import bundle as build
from tests.support.chat_templates import PHI3_MEDIUM, RAISES, TRIMS, with_template
from toolkit.agent.device.chat import Template, generated, is_stop
from toolkit.agent.device.protocol import AgentFailure
from toolkit.agent.device.texts import begins_with_blank, encode

CODE = "    if x:\n        return 1"
SYSTEM, USER = {"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}


def tokenizer_of(folder: Path) -> Any:
    import onnxruntime_genai as og

    return og.Tokenizer(og.Model(str(folder)))


@pytest.fixture
def plain() -> Any:
    return tokenizer_of(build("fp32").path)


def said(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.decode(Template(tokenizer).encode(messages)))


@pytest.mark.parametrize("template", [PHI3_MEDIUM, RAISES])
def test_a_system_message_without_a_place_leads_the_first_user_turn(template: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(with_template(build("fp32").path, tmp_path / "bundle", template))
    assert not Template(tokenizer).takes_system
    both = [{"role": "user", "content": "Be brief\n\nHi"}]
    assert Template(tokenizer).encode([SYSTEM, USER]) == Template(tokenizer).encode(both)
    later = [USER, {"role": "assistant", "content": "Ho"}, USER]
    assert Template(tokenizer).encode([SYSTEM, *later]) == Template(tokenizer).encode([*both, *later[1:]])
    # The template has this text by itself, and still doesn't pass it on.
    assert "user\n\nHi" in said(tokenizer, [{"role": "system", "content": "user"}, USER])


def test_templates_with_a_place_for_it_are_left_alone(plain: Any, tmp_path: Path) -> None:
    trimming = tokenizer_of(with_template(build("fp32").path, tmp_path / "bundle", TRIMS))
    for tokenizer in (plain, trimming):
        assert Template(tokenizer).takes_system
        found = said(tokenizer, [{"role": "system", "content": " Be brief "}, USER])
        assert found.count("Be brief") == 1 and "Be brief \n\n" not in found


def test_a_template_that_leaves_nothing_is_told(tmp_path: Path) -> None:
    """Given an empty text the runtime's tokenizer would end the process (SIGFPE)."""
    tokenizer = tokenizer_of(with_template(build("fp32").path, tmp_path / "bundle", "{% if false %}x{% endif %}"))
    with pytest.raises(AgentFailure, match="leaves nothing of the conversation"):
        Template(tokenizer).encode([USER])


def test_no_text_reaches_the_tokenizer_in_part(plain: Any) -> None:
    assert encode(plain, "") == []
    for text, place in (("And\0God", "line 1, column 4"), ("And\n\ud800", "line 2, column 1")):
        with pytest.raises(AgentFailure, match=place):
            encode(plain, text)
        with pytest.raises(AgentFailure, match=place):
            Template(plain).encode([{"role": "user", "content": text}])


class Says:
    """A generator that says the tokens it is told."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._last = 0

    def is_done(self) -> bool:
        return not self._tokens

    def generate_next_token(self) -> None:
        self._last = self._tokens.pop(0)

    def get_next_tokens(self) -> list[int]:
        return [self._last]


def answered(tokenizer: Any, text: str) -> str:
    says = Says(encode(tokenizer, text))
    return "".join(piece for _, piece in generated(says, tokenizer, begins_with_blank(tokenizer)))


@pytest.mark.parametrize("text", [CODE, "Noah", " one blank", "\n\ttab", "  ", "\u00e9 \U0001f600"])
def test_an_answer_is_what_was_said_first_blanks_included(plain: Any, text: str) -> None:
    assert begins_with_blank(plain)
    assert answered(plain, text) == text


def test_a_tokenizer_that_adds_no_blank(tmp_path: Path) -> None:
    """Phi-4's kind: bytes, a blank is a part of the word behind it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = with_template(build("fp32").path, tmp_path / "bundle", PHI3_MEDIUM)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"]
    )
    words.train_from_iterator([CODE, "And God said, Let there be light"] * 9, trainer)
    (folder / "tokenizer.json").unlink()
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"})
    )
    tokenizer = tokenizer_of(folder)
    assert not begins_with_blank(tokenizer)
    assert answered(tokenizer, CODE) == CODE
    assert answered(tokenizer, " light") == " light"


def test_only_a_stop_is_a_stop() -> None:
    assert is_stop(b'{"stop": true}\n')
    assert not any(map(is_stop, (b'{"user": "stop"}', b'{"stop": false}', b"stop", b"[]", b"", b"\xff")))
