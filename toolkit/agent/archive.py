"""The program that runs on a target, packed into one file. The host never runs any of it itself."""

from __future__ import annotations

import base64
import hashlib
import tempfile
import zlib
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
_VERSION = """\
import sys

if sys.version_info < (3, 9):
    said = "the agent needs Python 3.9, this is %d.%d" % sys.version_info[:2]
    print('{"protocol": 1, "error": {"code": "old_python", "message": "' + said + '", "hint": null}}')
    sys.exit(1)
"""
_MAIN = (
    _VERSION.encode()
    + b"""\
from edgephi_agent.main import main

main()
"""
)
# Neither the user's variables and packages nor the login folder's files are imported; Python 2 has no -I.
ISOLATED = ("-E", "-s", "-u", "-c")
_UNPACK = "import sys;sys.path.pop(0);import base64,zlib;exec(zlib.decompress(base64.b64decode(sys.argv[1])))"
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
        for name, text in sorted({**parts, "__main__.py": _MAIN}.items()):
            entry = zipfile.ZipInfo(name, _NO_TIME)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, text.replace(b"\r\n", b"\n"))
    return buffer.getvalue()


@cache
def agent_sha256() -> str:
    """Identity of this version of the agent; part of its file name on the target and of every report."""
    return hashlib.sha256(agent_archive()).hexdigest()


def start_program() -> str:
    """The program that starts the agent: its last two arguments are the agent's path and SHA-256."""
    source = (Path(__file__).parent / "start.py").read_text(encoding="utf-8")
    without_login_folder = "sys.path[:] = [entry for entry in sys.path if entry]\n"
    return f"{_VERSION}{without_login_folder}exec('''\\\n{source}\n\nstart(*sys.argv[-2:])\n''')\n"


@cache
def start_argv() -> tuple[str, ...]:
    """The words behind a target's Python that start the agent; its path and SHA-256 follow.

    They say all that runs there before it is known whose file lies there, in a form that no shell reads otherwise.
    """
    packed = zlib.compress(start_program().encode(), level=9)
    return (*ISOLATED, _UNPACK, base64.b64encode(packed).decode())


@contextmanager
def agent_file() -> Iterator[Path]:
    """The archive as a private temporary file, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="edgephi-agent-") as folder:
        path = Path(folder) / "agent.pyz"
        path.write_bytes(agent_archive())
        yield path
