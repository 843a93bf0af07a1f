"""The script that runs on a target. The host only reads this folder; it never imports the script."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PROTOCOL = 1
AGENT_PATH = Path(__file__).parent / "agent.py"


@cache
def agent_sha256() -> str:
    """Identity of this version of the agent; part of its file name on the target and of every report."""
    return hashlib.sha256(AGENT_PATH.read_bytes()).hexdigest()
