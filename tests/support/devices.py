"""Targets of this machine, and their state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.catalog import Target
from toolkit.device import Device, connect
from toolkit.emulate import EmbeddedServer, PrivateSshd
from toolkit.events import Event, Step


def target_at(root: Path) -> Target:
    return Target(name="here", transport="local", profile="local", install_root=str(root))


def target_over(server: PrivateSshd | EmbeddedServer, root: Path) -> Target:
    return Target(
        name="pi5",
        host=server.host,
        port=server.port,
        user=server.user,
        profile="local",
        install_root=str(root),
        identity_file=server.identity_file,
        known_hosts=server.known_hosts,
    )


@contextmanager
def device_at(root: Path) -> Iterator[Device]:
    with connect(target_at(root)) as device:
        yield device


def pointer(root: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads((root / "current.json").read_text())
    return value


def steps(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Step) and not event.skipped]
