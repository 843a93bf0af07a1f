"""An emulated machine's process. The tests of power cuts are in tests/system/test_power.py."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.power.machine import Machine
from tests.support.emulated import files_of
from tests.support.paths import REPO
from toolkit.errors import ConfigError, HostUnreachable

# Argument: a folder. Nothing boots from its files; the test needs only the emulator's process.
HOLDER = """
import sys
from pathlib import Path
from tests.power.machine import Machine
from tests.support.emulated import files_of
kernel, disk = files_of(Path(sys.argv[1]))
machine = Machine(kernel, disk, "driver=null-co")
print(machine.port, flush=True)
machine.power_on()
"""


def emulators(port: int) -> list[int]:
    """The ids of the processes that forward that port to a machine."""
    mark = f"hostfwd=tcp:127.0.0.1:{port}-".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # the process has ended
            continue
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_emulator_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    kernel, disk = files_of(tmp_path)
    with pytest.raises(ConfigError, match="qemu-system-aarch64 isn't installed here"):
        Machine(kernel, disk, "driver=null-co").__enter__()


@pytest.mark.power
def test_a_machine_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.power.machine._BOOT_TIMEOUT_S", 2.0)
    kernel, disk = files_of(tmp_path)
    machine = Machine(kernel, disk, "driver=null-co")
    with pytest.raises(HostUnreachable, match="the emulated machine doesn't answer"):
        machine.__enter__()
    assert emulators(machine.port) == []


@pytest.mark.power
def test_a_machine_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=REPO) as holder:
        assert holder.stdout
        port = int(holder.stdout.readline())
        wait_until(lambda: emulators(port) != [])
        holder.kill()
    wait_until(lambda: emulators(port) == [])
