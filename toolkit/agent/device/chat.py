"""A conversation, its cache kept between turns."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from .inference import first_line, load_model, new_generator, planned_context, settings_of
from .likelihood import common_prefix
from .protocol import AgentFailure, emit
from .texts import begins_with_blank, encode, refuse_broken

# A text that stands in no template by itself.
MARK = "edgephi-7f3a1c"


def child_chat(request: dict[str, Any]) -> dict[str, Any]:
    """Answer turns until stdin ends. The KV cache of the common prefix is kept between turns."""
    conversation = Conversation(request)
    for turn in conversation.turns:
        conversation.take(turn)
    return {}


class Turns:
    """The turns on stdin. A thread reads them, so that `{"stop": true}` is heard while an answer is being made.

    `stop` is set from such a line on until the next turn arrives: a stop that came too late stops no other answer.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            line = self._lines.get()
            if line is None:
                return
            yield json.loads(line)

    def _read(self) -> None:
        # This thread would hold the lock of sys.stdin for ever, and the interpreter wants it at its end.
        with open(0, "rb", closefd=False) as stdin:
            for line in stdin:
                if is_stop(line):
                    self.stop.set()
                else:
                    self.stop.clear()
                    self._lines.put(line)
        self._lines.put(None)


def is_stop(line: bytes) -> bool:
    try:
        return bool(json.loads(line).get("stop"))
    except (ValueError, AttributeError):
        return False


class Conversation:
    """A loaded model, what was said, and the generator that has read it."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._og, self._model, self._tokenizer, load_ns = load_model(request)
        self._context = planned_context(request)
        self._blank = begins_with_blank(self._tokenizer)
        self._template = Template(self._tokenizer)
        self._messages: list[dict[str, str]] = []
        self._generator: Any = None
        # On Windows a library that is loaded while a thread reads stdin may wait for that thread.
        self.turns = Turns()
        emit("event", {"type": "ready", "load_ns": load_ns, "context_tokens": self._context})

    def take(self, turn: dict[str, Any]) -> None:
        """Answer one turn: {user, system or None, max_new_tokens}."""
        if turn.get("system"):
            self._messages.insert(0, {"role": "system", "content": turn["system"]})
            if not self._template.takes_system:
                emit("event", {"type": "system_folded"})
        self._messages.append({"role": "user", "content": turn["user"]})
        ids = self._fit(turn["max_new_tokens"])
        submit = time.perf_counter_ns()
        self._read(ids)
        text = self._answer(len(ids), turn["max_new_tokens"], submit)
        self._messages.append({"role": "assistant", "content": text})

    def _fit(self, max_new_tokens: int) -> list[int]:
        """Token ids of the conversation; its oldest turns are forgotten when the planned context is too short."""
        room = self._context - min(max_new_tokens, self._context // 2)
        ids = self._template.encode(self._messages)
        forgotten = 0
        while len(ids) > room:
            first = 1 if self._messages[0]["role"] == "system" else 0
            if len(self._messages) - first <= 1:
                message = f"the prompt has {len(ids)} tokens, the planned context leaves room for {room}"
                raise AgentFailure("too_long", message)
            del self._messages[first : first + 2]
            forgotten += 1
            ids = self._template.encode(self._messages)
        if forgotten:
            emit("event", {"type": "forgot", "turns": forgotten})
        return ids

    def _read(self, ids: list[int]) -> None:
        """Have the generator read `ids`: the last one, rewound to the prefix in common, or a new one."""
        emit("event", {"type": "prefill", "tokens": len(ids)})
        if self._generator is not None:
            known = [int(token) for token in self._generator.get_sequence(0)]
            common = min(common_prefix(known, ids), len(ids) - 1)
            try:
                self._generator.rewind_to(common)
                self._generator.append_tokens(ids[common:])
                return
            except Exception as exc:
                # Not every cache can be rewound (a sliding window's can't): a new generator reads it all again.
                sys.stderr.write(f"no rewind: {first_line(exc)}\n")
        sampling = self._request.get("sampling") or {}
        settings = settings_of(self._request)
        self._generator = new_generator(self._og, self._model, settings, max_length=self._context, **sampling)
        self._generator.append_tokens(ids)

    def _answer(self, prompt_tokens: int, max_new_tokens: int, submit: int) -> str:
        """Generate one turn, with a token event for each piece; returns its text. Stamps count from `submit`."""
        stop = self.turns.stop
        pieces: list[str] = []
        stamps: list[int] = []
        for at, piece in generated(self._generator, self._tokenizer, self._blank):
            stamps.append(at - submit)
            if piece:
                pieces.append(piece)
                emit("event", {"type": "token", "text": piece})
            if stop.is_set() or len(stamps) == max_new_tokens:
                break
        done = self._generator.is_done()
        end = {"prompt_tokens": prompt_tokens, "token_ns": stamps, "stopped": done}
        emit("event", {"type": "turn_end", "interrupted": stop.is_set() and not done, **end})
        return "".join(pieces)


def generated(generator: Any, tokenizer: Any, blank: bool) -> Iterator[tuple[int, str]]:
    """The time in ns and the piece of text of each token of an answer; the one `blank` before the text isn't its own.

    A piece is empty while a character isn't whole.
    """
    stream = tokenizer.create_stream()
    while not generator.is_done():
        generator.generate_next_token()
        at = time.perf_counter_ns()
        piece = stream.decode(int(generator.get_next_tokens()[0]))
        if piece and blank:
            piece, blank = piece.removeprefix(" "), False
        yield at, piece


class Template:
    """A model's chat template. `takes_system` tells if it has a place for a system message.

    Some templates raise an error for that role, and some pass over it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        try:
            self.takes_system = MARK in self._render([message("system", MARK), message("user", "?")])
        except AgentFailure:
            self.takes_system = False

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation. Without a place of its own the system message leads the first user turn.

        Raises AgentFailure.
        """
        if messages[0]["role"] == "system" and not self.takes_system:
            system, user, *rest = messages
            messages = [message("user", f"{system['content']}\n\n{user['content']}"), *rest]
        ids = encode(self._tokenizer, self._render(messages))
        if not ids:
            raise AgentFailure("no_chat_template", "this model's chat template leaves nothing of the conversation")
        return ids

    def _render(self, messages: list[dict[str, str]]) -> str:
        for said in messages:
            refuse_broken(said["content"])
        try:
            text: str = self._tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
        except Exception as exc:
            words = f"this model's chat template can't be used: {first_line(exc)}"
            raise AgentFailure("no_chat_template", words) from exc
        return text


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
