"""Texts on their way to the runtime's tokenizer, a library in C, and back."""

from __future__ import annotations

from typing import Any

from toolkit.untrusted import text_problem

from .protocol import AgentFailure


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, none for an empty one: the tokenizer would end the process.

    Raises AgentFailure for text that the tokenizer wouldn't read whole.
    """
    refuse_broken(text)
    return [int(token) for token in tokenizer.encode(text)] if text else []


def refuse_broken(text: str) -> None:
    """Raise AgentFailure for text that no tokenizer takes, with the place of the character."""
    problem = text_problem(text)
    if problem:
        raise AgentFailure("bad_request", f"this text can't be given to the model: {problem}")


def begins_with_blank(tokenizer: Any) -> bool:
    """Tell if the tokenizer puts a blank before every text, as SentencePiece does: then one leads each answer too."""
    stream = tokenizer.create_stream()
    return "".join(stream.decode(token) for token in encode(tokenizer, "a")).startswith(" ")
