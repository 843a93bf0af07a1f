"""Answers for a test harness: the likelihood of a continuation, and greedy text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .inference import load_model, new_generator, planned_context
from .likelihood import last_logits_only, log_probabilities
from .protocol import emit
from .texts import encode


def child_score(request: dict[str, Any]) -> dict[str, Any]:
    """Answer a test harness's questions until stdin ends: one JSON line in, one event out."""
    og, model, tokenizer, _ = load_model(request)
    context = planned_context(request)
    stepwise = last_logits_only(og, model)
    begin = begin_token(request)
    for line in sys.stdin:
        question = json.loads(line)
        if question["kind"] == "generate":
            emit("event", dict(complete(og, model, tokenizer, question, context, begin), type="completion"))
        else:
            head, tokens = encode_pair(tokenizer, question["context"], question["continuation"], begin)
            emit("event", dict(score(og, model, tokens, head, context - 1, stepwise), type="score"))
    return {}


def begin_token(request: dict[str, Any]) -> int:
    """The token that stands before a text without a context."""
    text = (Path(request["model_folder"]) / "genai_config.json").read_text(encoding="utf-8")
    token: int = json.loads(text)["model"]["bos_token_id"]
    return token


def encode_pair(tokenizer: Any, context: str, continuation: str, begin: int) -> tuple[int, list[int]]:
    """The number of given tokens, and all tokens. Blanks between the two belong to the continuation's first word."""
    kept = context.rstrip()
    tokens = encode(tokenizer, context + continuation)
    head = len(encode(tokenizer, kept))
    return (head, tokens) if head else (1, [begin, *tokens])


def score(og: Any, model: Any, tokens: list[int], head: int, limit: int, stepwise: bool) -> dict[str, Any]:
    """Log-likelihood in nats of the tokens after the first `head`, and whether each of them is the likeliest.

    More tokens than `limit` are read in windows: each token is predicted once, the last ones from a whole window.
    """
    total, likeliest, position = 0.0, True, head
    while position < len(tokens):
        first = max(0, min(position - 1, len(tokens) - limit))
        window = tokens[first : first + limit]
        rows = log_probabilities(og, model, window, stepwise)[position - first - 1 :]
        chosen = window[position - first :]
        total += float(rows[range(len(chosen)), chosen].sum())
        likeliest = likeliest and bool((rows.argmax(axis=-1) == chosen).all())
        position = first + len(window)
    return {"log_likelihood": total, "greedy": likeliest}


def complete(og: Any, model: Any, tokenizer: Any, question: dict[str, Any], context: int, begin: int) -> dict[str, Any]:
    """Continue a text greedily until a stop text, the end of the answer or a number of tokens; the stop is cut off."""
    count = min(question["max_tokens"], context // 2)
    ids = encode(tokenizer, question["context"])[count - context :] or [begin]
    generator = new_generator(og, model, max_length=len(ids) + count)
    generator.append_tokens(ids)
    stream = tokenizer.create_stream()
    text = ""
    while not generator.is_done():
        generator.generate_next_token()
        text += stream.decode(int(generator.get_next_tokens()[0]))
        ends = [text.index(stop) for stop in question["until"] if stop in text]
        if ends:
            return {"text": text[: min(ends)]}
    return {"text": text}
