"""Locks that another process holds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import REPO

_HOLD = """\
import sys, time
from pathlib import Path
from toolkit.files import locked
with locked(Path(sys.argv[1]), "holds it"):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lock at `path`, and kill it at the end; the caller may kill it before."""
    command = [sys.executable, "-c", _HOLD, str(path)]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(REPO)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == "held\n", process.stderr.read()
            yield process
        finally:
            process.kill()
