"""The results of deployments with a fault in the middle, as tables in docs/reliability.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.events import Event, Progress, Service, Step

RECORD = os.environ.get("EDGEPHI_RECORD_FAULTS")
HEAD = """| fault | times | old release whole | new release whole | the same command then completed |
|---|---|---|---|---|"""


@dataclass
class Row:
    """The results of one kind of fault: the release that answered each time, and the count of completed re-runs."""

    answers: list[str] = field(default_factory=list)
    completed: int = 0

    def count(self, answer: str) -> int:
        return self.answers.count(answer)


@dataclass
class Table:
    """The results, by fault."""

    rows: dict[str, Row] = field(default_factory=dict)

    def __getitem__(self, fault: str) -> Row:
        return self.rows.setdefault(fault, Row())

    def markdown(self) -> str:
        lines = [
            f"| {fault} | {len(row.answers)} | {row.count('old')} | {row.count('new')} | {row.completed} |"
            for fault, row in self.rows.items()
        ]
        return "\n".join([HEAD, *lines])


@contextmanager
def recorded(name: str) -> Iterator[Table]:
    """Give a table to fill; at the end it replaces the one in the page that EDGEPHI_RECORD_FAULTS names, if set."""
    table = Table()
    yield table
    if RECORD and table.rows:
        path = Path(RECORD)
        begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
        head, _, rest = path.read_text("utf-8").partition(begin)
        tail = rest.partition(end)[2]
        path.write_text(f"{head}{begin}{table.markdown()}\n{end}{tail}", "utf-8")


def broken_by(service: Service[object], strike: Callable[[Event], bool], fault: Callable[[], object]) -> None:
    """Run a service, and cause the fault at the first event for which `strike` is true."""
    struck = False
    with suppress(ToolkitError):
        for event in service:
            if not struck and strike(event):
                struck = True
                fault()
    assert struck, "the fault came too late"


def sent(count: int, label: str = "push") -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Progress) and event.label == label and event.done >= count


def says(text: str) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Step) and text in event.text
