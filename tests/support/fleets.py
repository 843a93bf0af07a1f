"""Devices for rollouts: folders of this machine, some whole, others with the faults of real devices."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from toolkit.catalog import Target
from toolkit.catalog.target import target_toml
from toolkit.emulate import EmbeddedServer, PrivateSshd
from toolkit.emulate.sshd import free_port


def device_root(folder: Path, runtimes: Path) -> Path:
    """An install root that holds the runtime alone."""
    folder.mkdir(parents=True)
    (folder / "runtimes").symlink_to(runtimes)
    return folder


def here(name: str, root: Path) -> Target:
    """A device that is a folder."""
    return Target(name=name, transport="local", profile="local", install_root=str(root), tags=("lab",))


def over(server: PrivateSshd | EmbeddedServer, name: str, root: Path) -> Target:
    """A device that is a folder behind a loopback server."""
    return here(name, root).model_copy(
        update={
            "transport": "ssh",
            "host": server.host,
            "port": server.port,
            "user": server.user,
            "identity_file": server.identity_file,
            "known_hosts": server.known_hosts,
        }
    )


def switched_off(name: str) -> Target:
    """A device on whose port nothing listens."""
    return Target(name=name, host="127.0.0.1", port=free_port(), profile="local", tags=("lab",))


def root_below_a_file(folder: Path) -> Path:
    """An install root that can't be made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("no folder")
    return folder / "device"


def root_that_tires(folder: Path, runtimes: Path, loads: int) -> Path:
    """An install root whose runtime works for `loads` starts, and dies on each later one."""
    (lock,) = [path.name for path in runtimes.iterdir()]
    (folder / "runtimes" / lock / "venv" / "bin").mkdir(parents=True)
    shutil.copy(runtimes / lock / "ready.json", folder / "runtimes" / lock)
    counter, python = folder / "loads", folder / "runtimes" / lock / "venv" / "bin" / "python"
    real = runtimes / lock / "venv" / "bin" / "python"
    count = f'echo load >> {counter}\n[ "$(wc -l < {counter})" -le {loads} ] || kill -KILL $$'
    python.write_text(f'#!/bin/sh\n{count}\nexec {real} "$@"\n')
    python.chmod(0o755)
    return folder


def write_targets(folder: Path, targets: list[Target]) -> None:
    """Write the target files that the command line reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for target in targets:
        (folder / f"{target.name}.toml").write_text(target_toml(target))


def processes_naming(folder: Path) -> list[int]:
    """List the processes with that folder in their command line: agents below it, and their children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        # The process may have ended since it was listed.
        with suppress(OSError):
            if os.fsencode(folder) in path.read_bytes():
                found.append(int(path.parent.name))
    return found
