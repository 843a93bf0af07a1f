"""Readers of files and small tools: a missing one gives empty text, never an error."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

SYSTEM = Path("/")  # the folder of etc, proc and sys


def system_path(path: str) -> Path:
    return SYSTEM / path.lstrip("/")


def read_text(path: str | Path) -> str:
    """A file's text; '' when it can't be read. A str names a file of the system. Device-tree strings end in NUL."""
    file = path if isinstance(path, Path) else system_path(path)
    try:
        return file.read_text(encoding="utf-8", errors="replace").rstrip("\0\n")
    except OSError:
        return ""


def run_tool(*argv: str, timeout_s: float = 5) -> str:
    """Output of a small system tool, '' when it is missing or fails."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def first_output_line(*argv: str, timeout_s: float = 2) -> str:
    """The first line of a tool that goes on for ever, which is ended then; '' when it is missing or stays silent."""
    try:
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.stdout is not None
            watchdog = threading.Timer(timeout_s, child.kill)
            watchdog.start()
            try:
                return child.stdout.readline().decode("utf-8", "replace")
            finally:
                watchdog.cancel()
                child.kill()
    except OSError:
        return ""
