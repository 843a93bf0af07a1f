"""chat."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from toolkit.cli import options
from toolkit.untrusted import LARGEST_TEXT_BYTES, text_problem

if TYPE_CHECKING:
    from toolkit.jobs import Conversation, Turn


def _readable(_ctx: click.Context, _param: click.Parameter, text: str | None) -> str | None:
    """The text of an option. Raises BadParameter for what no tokenizer takes."""
    problem = text_problem(text or "")
    if problem:
        raise click.BadParameter(problem)
    return text


@click.command()
@click.argument("target", shell_complete=options.names("targets"))
@click.option("--prompt", "-p", callback=_readable, help="One question: answer it and end. `-` reads it from stdin.")
@click.option("--system", "-s", callback=_readable, help="System message.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", type=click.FloatRange(0, 5), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--stats/--no-stats", default=None, help="Say TTFT and tok/s after each answer (on in a terminal).")
@options.trust_folder
def chat(
    target: str,
    prompt: str | None,
    system: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    stats: bool | None,
) -> None:
    """Talk to the active release of a target.

    Tokens stream as the device makes them. Text piped into stdin is the prompt: `echo "Who was Noah?" |
    edgephi chat pi5`. In a conversation, Ctrl-C ends an answer and Ctrl-D ends it all.
    """
    from toolkit.cli import render
    from toolkit.device import connect
    from toolkit.jobs import converse

    interactive = prompt is None and sys.stdin.isatty()
    one_shot = None if interactive else _read_prompt(prompt)
    sampling: dict[str, float | bool] | None = None
    if not temperature:
        options.say_idle(("top_p", "seed"), "without --temperature: greedy answers don't vary")
    else:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
        if seed is not None:
            sampling["random_seed"] = seed
    show_stats = sys.stderr.isatty() if stats is None else stats
    with connect(target, render.prompt_secret()) as device, converse(device, sampling) as conversation:
        render.follow(conversation.wait_until_loaded())
        if one_shot is not None:
            _say(conversation, one_shot, system, max_tokens, show_stats)
        else:
            _talk(conversation, system, max_tokens, show_stats)


def _read_prompt(prompt: str | None) -> str:
    text = _piped() if prompt in (None, "-") else prompt
    if not text or not text.strip():
        raise click.UsageError("the prompt is empty: give --prompt TEXT, or pipe text into stdin")
    return text.rstrip("\r\n")


def _piped() -> str:
    """The text on stdin. Raises UsageError for more than 4 MiB, for bytes that aren't text, and for a NUL."""
    raw = sys.stdin.buffer.read(LARGEST_TEXT_BYTES + 1)
    if len(raw) > LARGEST_TEXT_BYTES:
        raise click.UsageError(f"the prompt on stdin is longer than {LARGEST_TEXT_BYTES:,} bytes")
    encoding = sys.stdin.encoding or "utf-8"
    try:
        text = raw.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as exc:
        raise click.UsageError(
            f"the prompt on stdin isn't {encoding.upper()} text: byte {exc.start} is 0x{raw[exc.start]:02x}"
        ) from exc
    problem = text_problem(text)
    if problem:
        raise click.UsageError(f"the prompt on stdin can't be given to a model: {problem}")
    return text


def _talk(conversation: Conversation, system: str | None, max_tokens: int, show_stats: bool) -> None:
    from toolkit.cli import render

    render.note("Ctrl-C ends an answer; an empty line or Ctrl-D ends the conversation.")
    while True:
        try:
            text = render.ask_line("> ")
        except UnicodeDecodeError as exc:
            render.warn(f"that line isn't {exc.encoding.upper()} text: it wasn't sent")
            continue
        except KeyboardInterrupt:
            render.line()
            render.note("Ctrl-D ends the conversation.")
            continue
        except EOFError:
            render.line()
            return
        if not text.strip():
            return
        if problem := text_problem(text):
            render.warn(f"that line can't be given to a model: {problem}; it wasn't sent")
            continue
        with _first_interrupt(conversation.stop):
            _say(conversation, text, system, max_tokens, show_stats)
        system = None


@contextmanager
def _first_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C in the block; a second one interrupts. Nothing is done where none interrupts."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return

    def hear(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(conversation: Conversation, text: str, system: str | None, max_tokens: int, show_stats: bool) -> None:
    from toolkit.cli import render

    turn = render.follow(conversation.say(text, max_new_tokens=max_tokens, system=system))
    render.line()
    if turn.fills(conversation.context_tokens):
        render.warn(f"the answer ends here: the planned context of {conversation.context_tokens} tokens is full")
    if show_stats:
        render.note(_stats(turn))


def _stats(turn: Turn) -> str:
    from toolkit.cli import render

    rate = f", decode {render.figure(turn.decode_tps)} tok/s" if turn.decode_tps else ""
    end = "; ended by Ctrl-C" if turn.interrupted else "" if turn.stopped else "; stopped at --max-tokens"
    return (
        f"  [{turn.prompt_tokens} tokens in, {turn.generated_tokens} out, "
        f"TTFT {render.figure(turn.ttft_ms)} ms{rate}{end}]"
    )
