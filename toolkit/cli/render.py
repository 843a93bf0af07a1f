"""Everything that edgephi draws. Results go to stdout, talk goes to stderr.

All text passes `visible` on its way: no file, device or server steers the terminal. A line end in a value is written as
`\\n`, except in errors, warnings and steps, whose further lines stand indented below the first: none looks like an
error, a hint or a step of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from io import StringIO
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from toolkit.cli import options
from toolkit.cli.ending import swallow_stderr
from toolkit.errors import ToolkitError, UntrustedFile
from toolkit.events import DeviceEvent, Ended, Progress, Question, Service, Step, Token, Warning_, drain
from toolkit.units import memory_text, size_text
from toolkit.untrusted import visible, visible_json

if TYPE_CHECKING:
    import click
    from rich.console import Console
    from rich.progress import Progress as Bar, TaskID

    from toolkit.events import Event

T = TypeVar("T")


@cache
def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _say(text: str, *, mark: str = "", tail: str = "") -> None:
    """Print text on stderr behind a `mark` in rich's markup: wrapped at words on a terminal, else left whole.

    Further lines are indented as far as the mark is wide. A stderr that can't be written swallows it.
    """
    from rich.text import Text

    label = Text.from_markup(mark)
    words = Text(_behind(label.plain, text).removeprefix(label.plain))
    try:
        _stderr().print(label + words + Text.from_markup(tail), soft_wrap=not _stderr().is_terminal)
    except OSError:
        swallow_stderr()


def note(text: str) -> None:
    """Print a line that isn't part of the result."""
    _say(visible(text))


def warn(text: str) -> None:
    """Print a warning on stderr."""
    _say(text, mark="[yellow]warning:[/] ")


def trace(text: str) -> None:
    """Print a traceback on stderr."""
    import click

    click.echo(visible(text, keep="\n"), err=True)


def complain(message: str, hint: str | None) -> None:
    """Print an error on stderr, and the next step."""
    import click

    for label, style, words in (("error: ", {"fg": "red", "bold": True}, message), (" hint: ", {"fg": "cyan"}, hint)):
        if words:
            click.secho(label, nl=False, err=True, **style)
            click.echo(_behind(label, words).removeprefix(label), err=True)


def complain_of_usage(exc: click.ClickException) -> None:
    """Print click's own error on stderr, as click does: with the usage of the command whose words are wrong."""
    import click

    said = _Shown()
    exc.show(said)
    message = exc.format_message()
    before = said.getvalue().removesuffix(f"{message}\n")
    label = before.rpartition("\n")[2]
    click.echo(visible(before.removesuffix(label), keep="\n") + _behind(label, message.expandtabs(4)), err=True)


class _Shown(StringIO):
    """The text that click shows on a terminal: elsewhere click removes escape sequences, and nobody would see them."""

    def isatty(self) -> bool:
        return True


def _behind(label: str, words: str) -> str:
    """Words behind a label, their further lines indented as far as it is wide."""
    return label + visible(words, keep="\n").replace("\n", "\n" + " " * len(label))


def line(text: str = "", color: str | None = None, rest: str = "") -> None:
    """Print one line of the result on stdout: `text`, in color on a terminal, and the `rest` behind it."""
    import click

    click.secho(visible(text), fg=color, nl=False)
    click.echo(visible(rest))


def text(content: str) -> None:
    """Print text of several lines on stdout as it is: a table in Markdown, a script."""
    sys.stdout.write(visible(content, keep="\n\t"))


def toml(content: str) -> None:
    """Print TOML on stdout."""
    sys.stdout.write(visible_json(content))


def warn_of(error: ToolkitError) -> None:
    """Warn of a file that is left out; the next step stands there only where it isn't to mend the file."""
    warn(f"{error.message}: {error.hint}" if isinstance(error, UntrustedFile) else error.message)


def left_out(error: ToolkitError) -> str:
    """The state of such a file in a table."""
    return "not trusted" if isinstance(error, UntrustedFile) else "broken"


def announcer() -> Callable[[Event], None]:
    """A function that draws what is announced outside of any service: a server's words before a login, a warning.

    A warning is drawn the first time alone.
    """
    warned: set[str] = set()

    def hear(event: Event) -> None:
        match event:
            case Step(text):
                note(text)
            case Warning_(text) if text not in warned:
                warned.add(text)
                warn(text)

    return hear


def prompt_secret() -> Callable[[str], str] | None:
    """A function that asks for a passphrase or a password and keeps no answer; None without a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    import click

    def ask(text: str) -> str:
        question = visible(text)
        return str(click.prompt(question, default="", show_default=False, hide_input=True, err=True, prompt_suffix=""))

    return ask


def ask_line(question: str) -> str:
    """The line that is typed in answer, without its end.

    Raises EOFError at the end of stdin, UnicodeDecodeError for what is no text. `input` isn't used: it cuts a line off
    at a NUL.
    """
    sys.stderr.write(visible(question))
    sys.stderr.flush()
    raw = sys.stdin.buffer.readline()
    if not raw:
        raise EOFError
    return raw.decode(sys.stdin.encoding or "utf-8").rstrip("\r\n")


def confirm(question: str) -> bool:
    """Ask for yes or no on the terminal; no without one, where nobody is asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    import click

    return click.confirm(visible(question), default=False, err=True)


def print_json(value: object) -> None:
    """Print the result as JSON on stdout, in ASCII where stdout takes no Unicode."""
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    sys.stdout.write(visible_json(json.dumps(value, indent=2, ensure_ascii=ascii_only)) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[str | tuple[str, ...]]], title: str | None = None) -> None:
    """Print the result as a table on stdout; columns of figures are aligned to the right and never fold.

    A cell that is a tuple has a line for each of its texts. Where stdout isn't a terminal the table is as wide as its
    text, so that `> file` and `| less -S` lose nothing.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(
        title=Text(visible(title)) if title else None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    grid.padding = (0, 1, 0, 0)
    body = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(body) and all(_is_figure(row[index]) for row in body)
        grid.add_column(
            Text(visible(column, keep="\n")), justify="right" if numeric else "left", overflow="fold", no_wrap=numeric
        )
    for row in body:
        grid.add_row(*(Text("\n".join(map(visible, (cell,) if isinstance(cell, str) else cell))) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        widest = Console(width=10_000).measure(grid).maximum
        console = Console(highlight=False, width=max(widest, len(visible(title or ""))))
    console.print(grid)


def size(n_bytes: float | None) -> str:
    """The size of a file, or the room on a disk: 2.72 GB."""
    return "–" if n_bytes is None else size_text(n_bytes)


def memory(n_bytes: float | None) -> str:
    """An amount of memory: 7.89 GiB."""
    return "–" if n_bytes is None else memory_text(n_bytes)


def figure(value: float | None, digits: int = 3) -> str:
    """A measured number with `digits` significant digits and no exponent."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    whole = len(str(int(abs(value))))
    return f"{value:.{max(0, digits - whole)}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share of one as a percentage."""
    return "–" if value is None else f"{value:.{digits}%}"


def duration(seconds: float) -> str:
    """Seconds for people, in two units at most: 0.4 s, 12 s, 3 min 20 s, 2 d 5 h."""
    if seconds < 60:
        return f"{figure(seconds, 2)} s"
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    first = next(index for index, (_, length) in enumerate(units) if seconds >= length)
    (large, length), (small, part) = units[first : first + 2]
    whole, rest = divmod(round(seconds / part), length // part)
    return f"{whole} {large} {rest} {small}"


def follow(service: Service[T]) -> T:
    """Run a service, draw what it yields on stderr, return what it returns."""
    with _Drawer() as drawer:
        return drain(service, drawer.draw)


class _Drawer:
    """Steps as lines, progress as one live bar on a terminal and as nothing elsewhere."""

    def __init__(self) -> None:
        self._devices = _DeviceLines()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._label: str | None = None

    def __enter__(self) -> _Drawer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_bar()
        self._devices.stop()

    def draw(self, event: Event) -> None:
        match event:
            case Step(text, skipped):
                self._stop_bar()
                _say_step(text, skipped=skipped)
            case Warning_(text):
                warn(text)
            case Progress(label, done, total, unit):
                if _stderr().is_terminal:
                    self._draw_bar(label, done, total, unit)
            case Token(text):
                self._stop_bar()
                sys.stdout.write(visible(text.replace("\r\n", "\n"), keep="\n\t"))
                sys.stdout.flush()
            case Question():
                self._stop_bar()
                event.granted = options.is_granted(event.option) or confirm(event.text)
            case DeviceEvent(target, about):
                self._stop_bar()
                self._devices.draw(target, about)

    def _draw_bar(self, label: str, done: float, total: float | None, unit: str) -> None:
        if self._bar is None or self._label != label:
            self._stop_bar()
            from toolkit.cli.bars import transfer_bar

            self._bar = transfer_bar(_stderr(), unit)
            self._bar.start()
            self._task = self._bar.add_task(visible(label), total=total)
            self._label = label
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total)

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = self._label = None


class _DeviceLines:
    """A live line for each device in work; without a terminal, a line for each step of each device."""

    def __init__(self) -> None:
        self._bars: Bar | None = None
        self._tasks: dict[str, TaskID] = {}

    def stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._tasks.clear()

    def draw(self, target: str, event: Step | Progress | Warning_ | Token | Question | Ended) -> None:
        match event:
            case Step(text, skipped):
                # Most steps begin with the name of their target, as work on one device alone needs it.
                text = text.removeprefix(f"{target}: ")
                if _stderr().is_terminal:
                    self._update(target, step=visible(text), completed=0)
                else:
                    _say_step(f"{target}: {text}", skipped=skipped)
            case Progress(_, done, total, _):
                if _stderr().is_terminal:
                    self._update(target, total=total, completed=done)
            case Warning_(text):
                warn(f"{target}: {text.removeprefix(f'{target}: ')}")
            case Ended(seconds, error):
                self._end(target)
                mark = "[red]✗[/] " if error else "[green]✓[/] "
                outcome = f"failed: {error.removeprefix(f'{target}: ')}" if error else "done"
                _say(f"{target}, {duration(seconds)}: {outcome}", mark=mark)

    def _update(self, target: str, **fields: Any) -> None:
        if self._bars is None:
            from toolkit.cli.bars import device_bars

            self._bars = device_bars(_stderr())
            self._bars.start()
        if target not in self._tasks:
            self._tasks[target] = self._bars.add_task(visible(target), total=None, step="")
        self._bars.update(self._tasks[target], **fields)

    def _end(self, target: str) -> None:
        if self._bars is not None and target in self._tasks:
            self._bars.remove_task(self._tasks.pop(target))
            if not self._tasks:
                self.stop()


def _say_step(text: str, *, skipped: bool) -> None:
    if skipped:
        _say(text, mark="[dim]=[/] ", tail=" [dim](already done)[/]")
    else:
        _say(text, mark="[green]>[/] ")


def _is_figure(cell: str | tuple[str, ...]) -> bool:
    return isinstance(cell, str) and (cell[:1].isdigit() or cell in ("–", "") or cell[:2] == "±0")
