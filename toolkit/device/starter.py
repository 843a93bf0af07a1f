"""Commands that may start a Python on a device, for where the usual one isn't there."""

from __future__ import annotations

import re

from toolkit.catalog.python import OLDEST
from toolkit.catalog.remote_path import python_argv
from toolkit.device.transport import Transport, finish
from toolkit.errors import RemoteCommandFailed

# Windows' launcher finds a Python outside the PATH; a `python` in the PATH may only say where to get one.
WINDOWS_STARTERS = ("py -3", "python", "python3")
# Names that systems use, the launcher of Windows, and the places of uv and pyenv, which the PATH of a session that
# isn't a login lacks.
STARTERS = (
    *(f"python3.{minor}" for minor in range(14, 8, -1)),
    *("python", "py", ".pyenv/shims/python3"),
    *(f".local/bin/python3.{minor}" for minor in range(14, 9, -1)),
)


def find_starter(transport: Transport) -> str | None:
    """Find a command there that starts a Python new enough for the agent; None when there is none."""
    for command in WINDOWS_STARTERS if transport.windows else STARTERS:
        try:
            said, status = finish(transport.start([*python_argv(command), "--version"]))
        except RemoteCommandFailed:
            continue
        version = re.search(r"Python (\d+)\.(\d+)\.", "\n".join(said))
        if status == 0 and version and (int(version[1]), int(version[2])) >= OLDEST:
            return command
    return None
