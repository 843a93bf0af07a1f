"""chat."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from toolkit.cli import options
from toolkit.untrusted import LARGEST_TEXT_BYTES

if TYPE_CHECKING:
    from toolkit.jobs import Conversation, Turn


@click.command()
@click.argument("target", shell_complete=options.names("targets"))
@click.option("--prompt", "-p", help="One question: answer it and end. `-` reads it from stdin.")
@click.option("--system", "-s", help="System message.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", type=click.FloatRange(0, 5), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--stats/--no-stats", default=None, help="Say TTFT and tok/s after each answer (on in a terminal).")
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
    edgephi chat pi5`.
    """
    from toolkit.cli import render
    from toolkit.device import connect
    from toolkit.jobs import converse

    interactive = prompt is None and sys.stdin.isatty()
    one_shot = None if interactive else _read_prompt(prompt)
    sampling: dict[str, float | bool] | None = None
    if temperature > 0:
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
    return text.strip()


def _piped() -> str:
    """The text on stdin. Raises UsageError for more than 4 MiB, and for bytes that aren't text."""
    raw = sys.stdin.buffer.read(LARGEST_TEXT_BYTES + 1)
    if len(raw) > LARGEST_TEXT_BYTES:
        raise click.UsageError(f"the prompt on stdin is longer than {LARGEST_TEXT_BYTES:,} bytes")
    encoding = sys.stdin.encoding or "utf-8"
    try:
        return raw.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as exc:
        raise click.UsageError(
            f"the prompt on stdin isn't {encoding.upper()} text: byte {exc.start} is 0x{raw[exc.start]:02x}"
        ) from exc


def _talk(conversation: Conversation, system: str | None, max_tokens: int, show_stats: bool) -> None:
    from toolkit.cli import render

    render.note("An empty line or Ctrl-D ends the conversation.")
    while True:
        try:
            text = render.ask_line("> ").strip()
        except UnicodeDecodeError as exc:
            render.warn(f"that line isn't {exc.encoding.upper()} text: it wasn't sent")
            continue
        except EOFError:
            render.line()
            return
        if not text:
            return
        _say(conversation, text, system, max_tokens, show_stats)
        system = None


def _say(conversation: Conversation, text: str, system: str | None, max_tokens: int, show_stats: bool) -> None:
    from toolkit.cli import render

    turn = render.follow(conversation.say(text, max_new_tokens=max_tokens, system=system))
    render.line()
    if show_stats:
        render.note(_stats(turn))


def _stats(turn: Turn) -> str:
    from toolkit.cli import render

    rate = f", decode {render.figure(turn.decode_tps)} tok/s" if turn.decode_tps else ""
    end = "" if turn.stopped else "; stopped at --max-tokens"
    return (
        f"  [{turn.prompt_tokens} tokens in, {turn.generated_tokens} out, "
        f"TTFT {render.figure(turn.ttft_ms)} ms{rate}{end}]"
    )
