"""The user's consent to packages of which no hash is locked: an index, or somebody on the way to it, decides their
content.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.deploy.runtime import Runtime
from toolkit.deploy.wheels import LOCKS, read_lock, sha256_of
from toolkit.errors import ConfigError
from toolkit.events import Question, Service

OPTION = "--unlocked-packages"
_HINT = (
    f"say {OPTION} if you trust them; the packages of shipped profiles for CPUs are locked, and --wheels FOLDER takes "
    "files of your own"
)


def ask_for_unlocked(where: str, runtime: Runtime) -> Service[None]:
    """Ask for consent to a runtime that no lock covers. Raises ConfigError without it."""
    if runtime.wheels is None:
        yield from _ask(where, ", ".join(runtime.packages), f"on {runtime.platform}")


def ask_for_strange(where: str, files: Sequence[Path], folder: Path) -> Service[None]:
    """Ask for consent to the fetched wheels that neither lie in the user's folder nor are locked.

    Raises ConfigError without it.
    """
    if strange := strange_wheels(files, folder):
        yield from _ask(where, ", ".join(path.name for path in strange), f"nor do they lie in {folder}")


def strange_wheels(files: Sequence[Path], folder: Path) -> list[Path]:
    """The wheels that neither lie in a folder, byte for byte, nor have a hash in any shipped lock."""
    known = {sha256_of(path) for path in folder.glob("*.whl")}
    left = [path for path in files if sha256_of(path) not in known]
    if left:
        locks = [read_lock(path) for path in LOCKS.glob("*.json")]
        known |= {wheel.sha256 for lock in locks for wheel in (*lock.wheels, lock.pip)}
    return [path for path in left if sha256_of(path) not in known]


def _ask(where: str, packages: str, more: str) -> Service[None]:
    question = Question(f"{where}: no hashes are locked for {packages}, {more}. Install what an index has?", OPTION)
    yield question
    if not question.granted:
        raise ConfigError(f"{where}: no hashes are locked for {packages}, {more}: nothing is installed", _HINT)
