"""Live bars on a terminal, of rich's parts. Labels and steps are shown as they come: `render` makes them safe first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.cli import render

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def device_bars(console: Console) -> Progress:
    """A line for each device: its name, its stage, its time, and the step that it is at (the field `step`)."""
    from rich.progress import BarColumn, Progress as Bar, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Elapsed(ProgressColumn):
        """The time since the device's first event; rich's own column stops when one stage is complete."""

        def render(self, task: Task) -> Text:
            return Text(render.duration(task.get_time() - (task.start_time or 0)), justify="right")

    return Bar(
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=20),
        Elapsed(),
        TextColumn("{task.fields[step]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        transient=True,
    )


def transfer_bar(console: Console, unit: str) -> Progress:
    """One bar with a label; `unit` is bytes or steps."""
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

    text: list[ProgressColumn] = [TextColumn("  {task.description}", markup=False), BarColumn(bar_width=30)]
    if unit == "bytes":
        counts: list[ProgressColumn] = [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    else:
        counts = [MofNCompleteColumn(), TimeElapsedColumn()]
    return Bar(*text, *counts, console=console, transient=True)
