"""The agent's own file: the agent puts it under its name itself, and refuses to work when it isn't whole."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any

from .files import fsync_path, remove
from .layout import AGENT_FILE, ROOT, sha256_file, write_durably
from .protocol import AgentFailure

# The name tells the first 16 hexadecimal digits of the SHA-256, whatever follows them.
NAME = re.compile(r"(agent-([0-9a-f]{16}))\.")


def refuse_if_damaged() -> None:
    """Refuse to work when a bit of this file has flipped: zip checks nothing of parts that are stored uncompressed."""
    match = NAME.match(AGENT_FILE.name)
    if match and sha256_file(AGENT_FILE)[:16] != match.group(2):
        hint = "run the command again: the agent is sent afresh"
        raise AgentFailure("damaged_agent", f"{AGENT_FILE} doesn't have the hash that its name tells", hint)


def refuse_if_exposed() -> None:
    """Refuse an install root that others can write to: they could run programs as this user. Windows isn't judged."""
    if not hasattr(os, "geteuid"):
        return
    status = ROOT.stat()
    hint = f"on the device: look at what lies there, then chmod 700 {ROOT}; or set install_root to a folder of your own"
    if status.st_uid != os.geteuid():
        raise AgentFailure("exposed_root", f"{ROOT} belongs to somebody else", hint)
    if status.st_mode & 0o022:
        mode = f"{status.st_mode & 0o7777:04o}"
        raise AgentFailure("exposed_root", f"{ROOT} can be written to by others (mode {mode})", hint)


def op_settle(_request: dict[str, Any]) -> dict[str, Any]:
    """Put this file, which has just arrived under another name, durably under the one that it is started by.

    It is written there rather than renamed: a host on this machine may have sent it as a hard link. `was_whole` is True
    when the same content stood there already.
    """
    match = NAME.match(AGENT_FILE.name)
    if not match or AGENT_FILE.suffix == ".pyz":
        raise AgentFailure("bad_request", f"{AGENT_FILE.name} isn't an agent that has just arrived")
    try:
        refuse_if_exposed()
    except AgentFailure:
        AGENT_FILE.unlink()
        raise
    path, content = AGENT_FILE.with_name(match.group(1) + ".pyz"), AGENT_FILE.read_bytes()
    was_whole = False
    with contextlib.suppress(OSError):  # none there, or the disk can't read it any more
        was_whole = path.read_bytes() == content
    if not was_whole:
        write_durably(path, content)
        # A new folder is flushed too, or files that are written into it later could be lost with it.
        for folder in (ROOT, ROOT.parent):
            with contextlib.suppress(PermissionError):  # somebody else's folder, not ours to read
                fsync_path(folder)
    remove(AGENT_FILE)
    return {"was_whole": was_whole}
