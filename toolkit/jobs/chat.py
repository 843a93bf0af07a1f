"""Talk to the active release of a target, the model staying loaded between turns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from toolkit.agent.messages import Forgot, ModelReady, ProgressMade, Result, SystemFolded, TokenText, TurnEnd
from toolkit.agent.requests import Chat
from toolkit.device import Device, Process
from toolkit.errors import AgentError
from toolkit.events import Progress, Service, Step, Token, Warning_

_FOLDED = "this model's chat template has no system role: the system message stands before the first user turn"


@dataclass(frozen=True)
class Turn:
    """One answer: its text, the time to its first token in ms, the tokens a second after that (None for one token).

    `stopped` tells that the model ended it or its context was full, `interrupted` that `Conversation.stop` did.
    """

    text: str
    prompt_tokens: int
    generated_tokens: int
    ttft_ms: float | None
    decode_tps: float | None
    stopped: bool
    interrupted: bool

    def fills(self, context_tokens: int) -> bool:
        """Tell if the answer ended because a context of that length had no room for more."""
        return self.prompt_tokens + self.generated_tokens >= context_tokens


class Conversation:
    """An agent on the device that keeps the model loaded and its KV cache warm. Use `converse`, which ends it."""

    def __init__(self, device: Device, process: Process, request: Chat) -> None:
        self._device = device
        self._process = process
        self._messages = device.agent.messages(process, request)
        # The planned context in tokens, known once the model is loaded.
        self.context_tokens = 0

    def wait_until_loaded(self) -> Service[float]:
        """Wait until the model is loaded; return the load time in seconds."""
        yield Step(f"{self._device.target.name}: load the model")
        for said in self._messages:
            if isinstance(said, ModelReady):
                self.context_tokens = said.context_tokens
                return said.load_ns / 1e9
        raise AgentError(f"{self._device.target.name}: the conversation ended before the model was loaded")

    def say(self, text: str, *, max_new_tokens: int, system: str | None = None) -> Service[Turn]:
        """Send one user turn; yield the answer's tokens as they come, and return the turn.

        `text` and `system` are texts without a `text_problem`: the device refuses others, and that ends the
        conversation.
        """
        turn = {"user": text, "system": system, "max_new_tokens": max_new_tokens}
        self._process.send(json.dumps(turn).encode() + b"\n")
        pieces: list[str] = []
        for said in self._messages:
            match said:
                case TokenText():
                    pieces.append(said.text)
                    if len(pieces) > max_new_tokens:
                        message = f"{self._device.target.name}: its answer goes on beyond {max_new_tokens} tokens"
                        raise AgentError(message, "its agent doesn't keep to what it was asked")
                    yield Token(said.text)
                case ProgressMade():
                    yield Progress(said.label, said.done, said.total, said.unit)
                case Forgot():
                    yield Warning_(f"the planned context is full: the oldest {said.turns} turns are forgotten")
                case SystemFolded():
                    yield Warning_(_FOLDED)
                case TurnEnd():
                    return _turn("".join(pieces), said)
                case Result():
                    break
        raise AgentError(f"{self._device.target.name}: the conversation ended in the middle of an answer")

    def stop(self) -> None:
        """End the answer that is being made, after its next token; `say` returns it so far. A signal may call this.

        A prompt that is being read is read to its end first.
        """
        self._process.send(b'{"stop": true}\n')


def _turn(text: str, end: TurnEnd) -> Turn:
    stamps = end.token_ns
    seconds = (stamps[-1] - stamps[0]) / 1e9 if len(stamps) > 1 else None
    return Turn(
        text=text,
        prompt_tokens=end.prompt_tokens,
        generated_tokens=len(stamps),
        ttft_ms=stamps[0] / 1e6 if stamps else None,
        decode_tps=(len(stamps) - 1) / seconds if seconds else None,
        stopped=end.stopped,
        interrupted=end.interrupted,
    )


@contextmanager
def converse(device: Device, sampling: dict[str, float | bool] | None = None) -> Iterator[Conversation]:
    """Start a conversation with the active release; greedy unless `sampling` gives genai search options."""
    request = Chat(sampling=sampling, settings=device.profile.runtime.settings)
    process = device.agent.start(request)
    try:
        yield Conversation(device, process, request)
    finally:
        process.kill()
