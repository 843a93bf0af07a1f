"""The program that runs on a target, packed into one file. The host never runs any of it itself."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PROTOCOL = 1
_PARTS = Path(__file__).parent / "device"
# The rules that host and device share: for manifests, for limits on a process, for pip. The parts import them as the
# host does.
_TOOLKIT = Path(__file__).parents[1]
_SHARED = ("untrusted.py", "localhost/groups.py", "localhost/pip.py")
# Every version of Python can run this: one that is too old for the parts says so.
_START = b"""\
import sys

if sys.version_info < (3, 9):
    said = "the agent needs Python 3.9, this is %d.%d" % sys.version_info[:2]
    print('{"protocol": 1, "error": {"code": "old_python", "message": "' + said + '", "hint": null}}')
    sys.exit(1)
from edgephi_agent.main import main

main()
"""
# The earliest time that a zip can hold.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


@cache
def agent_archive() -> bytes:
    """The parts of `device/` as a zip that Python runs: the same bytes on every host.

    They are stored uncompressed, because compressed bytes depend on the library's version.
    """
    import io
    import zipfile

    parts = {f"edgephi_agent/{path.name}": path.read_bytes() for path in _PARTS.glob("*.py")}
    parts |= {"toolkit/__init__.py": b"", "toolkit/localhost/__init__.py": b""}
    parts |= {f"toolkit/{name}": (_TOOLKIT / name).read_bytes() for name in _SHARED}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted({**parts, "__main__.py": _START}.items()):
            entry = zipfile.ZipInfo(name, _NO_TIME)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, text.replace(b"\r\n", b"\n"))
    return buffer.getvalue()


@cache
def agent_sha256() -> str:
    """Identity of this version of the agent; part of its file name on the target and of every report."""
    return hashlib.sha256(agent_archive()).hexdigest()


@contextmanager
def agent_file() -> Iterator[Path]:
    """The archive as a private temporary file, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="edgephi-agent-") as folder:
        path = Path(folder) / "agent.pyz"
        path.write_bytes(agent_archive())
        yield path
