"""A conversation, its cache kept between turns."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from .inference import first_line, load_model, new_generator, planned_context, settings_of
from .likelihood import common_prefix
from .protocol import AgentFailure, emit


def child_chat(request: dict[str, Any]) -> dict[str, Any]:
    """Answer turns until stdin ends. The KV cache of the common prefix is kept between turns."""
    og, model, tokenizer, load_ns = load_model(request)
    context = planned_context(request)
    emit("event", {"type": "ready", "load_ns": load_ns, "context_tokens": context})
    messages: list[dict[str, str]] = []
    generator = None
    for line in sys.stdin:
        turn = json.loads(line)
        if turn.get("system"):
            messages.insert(0, {"role": "system", "content": turn["system"]})
        messages.append({"role": "user", "content": turn["user"]})
        ids = fit_conversation(tokenizer, messages, context, turn["max_new_tokens"])
        submit = time.perf_counter_ns()
        generator = continue_from(og, model, generator, ids, context, request)
        text = answer(generator, tokenizer, len(ids), turn["max_new_tokens"], submit)
        messages.append({"role": "assistant", "content": text})
    return {}


def encode_conversation(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
    except Exception as exc:
        message = f"this model's chat template can't be used: {first_line(exc)}"
        raise AgentFailure("no_chat_template", message) from exc
    return [int(token) for token in tokenizer.encode(text)]


def fit_conversation(tokenizer: Any, messages: list[dict[str, str]], context: int, max_new_tokens: int) -> list[int]:
    """Token ids of the conversation; its oldest turns are forgotten when the planned context is too short."""
    room = context - min(max_new_tokens, context // 2)
    ids = encode_conversation(tokenizer, messages)
    forgotten = 0
    while len(ids) > room:
        first = 1 if messages[0]["role"] == "system" else 0
        if len(messages) - first <= 1:
            message = f"the prompt has {len(ids)} tokens, the planned context leaves room for {room}"
            raise AgentFailure("too_long", message)
        del messages[first : first + 2]
        forgotten += 1
        ids = encode_conversation(tokenizer, messages)
    if forgotten:
        emit("event", {"type": "forgot", "turns": forgotten})
    return ids


def continue_from(og: Any, model: Any, generator: Any, ids: list[int], context: int, request: dict[str, Any]) -> Any:
    """A generator that has read `ids`: the last one, rewound to the prefix in common, or a new one."""
    emit("event", {"type": "prefill", "tokens": len(ids)})
    if generator is not None:
        known = [int(token) for token in generator.get_sequence(0)]
        common = min(common_prefix(known, ids), len(ids) - 1)
        try:
            generator.rewind_to(common)
            generator.append_tokens(ids[common:])
            return generator
        except Exception as exc:
            # Not every cache can be rewound (a sliding window's can't): a new generator reads it all again.
            sys.stderr.write(f"no rewind: {first_line(exc)}\n")
    sampling = request.get("sampling") or {}
    generator = new_generator(og, model, settings_of(request), max_length=context, **sampling)
    generator.append_tokens(ids)
    return generator


def answer(generator: Any, tokenizer: Any, prompt_tokens: int, max_new_tokens: int, submit: int) -> str:
    """Generate one turn, with a token event for each piece; returns its text. Stamps count from `submit`."""
    stream = tokenizer.create_stream()
    pieces: list[str] = []
    stamps: list[int] = []
    while not generator.is_done() and len(stamps) < max_new_tokens:
        generator.generate_next_token()
        stamps.append(time.perf_counter_ns() - submit)
        piece = stream.decode(int(generator.get_next_tokens()[0]))
        if piece:
            pieces.append(piece)
            emit("event", {"type": "token", "text": piece})
    end = {"prompt_tokens": prompt_tokens, "token_ns": stamps, "stopped": generator.is_done()}
    emit("event", {"type": "turn_end", **end})
    return "".join(pieces)
