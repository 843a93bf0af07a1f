"""The `edgephi` command, run as a user types it."""

from __future__ import annotations

import subprocess
import sys


def edgephi(*args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    source: dict[str, object] = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "toolkit", *args], capture_output=True, text=True, **source
    )
