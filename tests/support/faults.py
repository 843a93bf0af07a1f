"""The results of deployments with a fault in the middle, as tables in docs/reliability.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.builds import bundle, follow
from toolkit.agent.requests import CheckLoad, ListReleases
from toolkit.bundle import Bundle
from toolkit.catalog import Target
from toolkit.deploy import PLAIN, Delivery, deploy
from toolkit.deploy.releases import verify
from toolkit.device import Device, connect
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


def old() -> Bundle:
    return bundle("fp32")


def new() -> Bundle:
    return bundle("int4-rtn-b32")


def answering(device: Device) -> str:
    """The active one of the two releases, after checking that it is whole, loads and generates."""
    found = follow(verify(device))
    pointer = device.ask(ListReleases()).pointer
    damaged = {checked.release for checked in found.damaged}
    assert pointer.release not in damaged
    assert pointer.release is not None and pointer.runtime is not None
    device.ask(CheckLoad(release=pointer.release, runtime=pointer.runtime, prompt="In the", tokens=2))
    return {old().id: "old", new().id: "new"}[pointer.release]


def settle(table: Table, fault: str, target: Target, delivery: Delivery = PLAIN) -> None:
    """Record after a fault that the device answers and that a re-run completes."""
    row = table[fault]
    with connect(target) as device:
        row.answers.append(answering(device))
        follow(deploy(new(), device, delivery))
        assert answering(device) == "new"
        follow(verify(device)).enforce()
    row.completed += 1
