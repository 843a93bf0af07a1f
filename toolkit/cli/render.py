"""Everything that edgephi draws. Results go to stdout, talk goes to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from toolkit.events import DeviceEvent, Ended, Progress, Service, Step, Token, Warning_, drain
from toolkit.units import memory_text, size_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar, TaskID

    from toolkit.events import Event

T = TypeVar("T")


@cache
def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _say(text: str, *, markup: bool = True) -> None:
    """Print a line on stderr: wrapped at words on a terminal, left whole in a pipe or a file."""
    _stderr().print(text, markup=markup, soft_wrap=not _stderr().is_terminal)


def note(text: str) -> None:
    """Print a line that isn't part of the result."""
    _say(text, markup=False)


def warn(text: str) -> None:
    _say(f"[yellow]warning:[/] {_escape(text)}")


def announced(event: Event) -> None:
    """Draw an event that was announced outside of any service, such as the words of a server before a login."""
    if isinstance(event, Step):
        note(event.text)


def prompt_secret() -> Callable[[str], str] | None:
    """A function that asks for a passphrase or a password and keeps no answer; None without a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    import click

    def ask(text: str) -> str:
        return str(click.prompt(text, default="", show_default=False, hide_input=True, err=True, prompt_suffix=""))

    return ask


def confirm(question: str) -> bool:
    """Ask for yes or no on the terminal; no without one."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    import click

    return click.confirm(question, err=True)


def print_json(value: object) -> None:
    """Print the result as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print the result as a table on stdout; columns of figures are aligned to the right and never fold.

    Where stdout isn't a terminal the table is as wide as its text, so that `> file` and `| less -S` lose
    nothing.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    grid.padding = (0, 1, 0, 0)
    body = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(body) and all(_is_figure(row[index]) for row in body)
        grid.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in body:
        grid.add_row(*(_escape(cell) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        widest = Console(width=10_000).measure(grid).maximum
        console = Console(highlight=False, width=max(widest, len(title or "")))
    console.print(grid)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as GitHub-flavoured Markdown."""
    lines = [
        "| " + " | ".join(column.replace("\n", " ") for column in columns) + " |",
        "|" + "|".join("---" for _ in columns) + "|",
    ]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


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
                sys.stdout.write(text)
                sys.stdout.flush()
            case DeviceEvent(target, about):
                self._stop_bar()
                self._devices.draw(target, about)

    def _draw_bar(self, label: str, done: float, total: float | None, unit: str) -> None:
        if self._bar is None or self._label != label:
            self._stop_bar()
            self._bar = _new_bar(unit)
            self._bar.start()
            self._task = self._bar.add_task(label, total=total)
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

    def draw(self, target: str, event: Step | Progress | Warning_ | Token | Ended) -> None:
        match event:
            case Step(text, skipped):
                # Most steps begin with the name of their target, as work on one device alone needs it.
                text = text.removeprefix(f"{target}: ")
                if _stderr().is_terminal:
                    self._update(target, step=text, completed=0)
                else:
                    _say_step(f"{target}: {text}", skipped=skipped)
            case Progress(_, done, total, _):
                if _stderr().is_terminal:
                    self._update(target, total=total, completed=done)
            case Warning_(text):
                warn(f"{target}: {text.removeprefix(f'{target}: ')}")
            case Ended(seconds, error):
                self._end(target)
                mark = "[red]✗[/]" if error else "[green]✓[/]"
                outcome = f"failed: {error.removeprefix(f'{target}: ')}" if error else "done"
                _say(f"{mark} {_escape(f'{target}, {duration(seconds)}: {outcome}')}")

    def _update(self, target: str, **fields: Any) -> None:
        if self._bars is None:
            self._bars = _new_device_bars()
            self._bars.start()
        if target not in self._tasks:
            self._tasks[target] = self._bars.add_task(target, total=None, step="")
        self._bars.update(self._tasks[target], **fields)

    def _end(self, target: str) -> None:
        if self._bars is not None and target in self._tasks:
            self._bars.remove_task(self._tasks.pop(target))
            if not self._tasks:
                self.stop()


def _say_step(text: str, *, skipped: bool) -> None:
    mark = "[dim]=[/]" if skipped else "[green]>[/]"
    tail = " [dim](already done)[/]" if skipped else ""
    _say(f"{mark} {_escape(text)}{tail}")


def _new_device_bars() -> Bar:
    from rich.progress import BarColumn, Progress as Bar, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Elapsed(ProgressColumn):
        """The time since the device's first event; rich's own column stops when one stage is complete."""

        def render(self, task: Task) -> Text:
            return Text(duration(task.get_time() - (task.start_time or 0)), justify="right")

    return Bar(
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=20),
        Elapsed(),
        TextColumn("{task.fields[step]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=_stderr(),
        transient=True,
    )


def _new_bar(unit: str) -> Bar:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress as Bar,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    text: list[ProgressColumn] = [TextColumn("  {task.description}"), BarColumn(bar_width=30)]
    if unit == "bytes":
        counts: list[ProgressColumn] = [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    else:
        counts = [MofNCompleteColumn(), TimeElapsedColumn()]
    return Bar(*text, *counts, console=_stderr(), transient=True)


def _is_figure(cell: str) -> bool:
    return cell[:1].isdigit() or cell in ("–", "") or cell[:2] in ("±0",)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
