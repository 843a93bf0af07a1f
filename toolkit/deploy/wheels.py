"""Wheels: sets that are locked by hash for one platform, and the download into this machine's cache."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from toolkit.catalog.record import Record, read_record
from toolkit.config import cache_dir, data_path
from toolkit.errors import ConfigError, MissingExtra
from toolkit.events import Progress, Service
from toolkit.files import fresh_folder, in_turn, replaced_folder
from toolkit.untrusted import reason

T = TypeVar("T")

LOCKS = data_path("wheels")
_POLL_S = 0.2
_WAITING = Progress("fetch wheels", 0, None)


@dataclass(frozen=True)
class Platform:
    """The platform of a wheel: CPython `python` (like 3.11) on `os` and `arch`; `tags` are accepted, best first."""

    python: str
    os: str
    arch: str
    tags: tuple[str, ...]

    def accepts(self, wheel: str) -> bool:
        """Tell if a wheel of that file name is for this kind of system; its version of Python isn't looked at."""
        from packaging.utils import parse_wheel_filename

        return any(tag.platform in (*self.tags, "any") for tag in parse_wheel_filename(wheel)[3])

    def __str__(self) -> str:
        return f"{self.os} {self.arch}, Python {self.python}"


class Wheel(Record):
    """One file of an index."""

    name: str
    version: str
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+!-]*\.whl$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=1)]

    @property
    def requirement(self) -> str:
        """The requirement line for pip that only this file satisfies."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


class WheelLock(Record):
    """All wheels that `packages` need on one platform, and the pip that installs them where there is none."""

    lock_version: Literal[1] = 1
    packages: tuple[str, ...]
    python: str
    os: str
    arch: str
    wheels: tuple[Wheel, ...]
    pip: Wheel

    @property
    def identity(self) -> str:
        """16 hexadecimal digits that change with every file that gets installed."""
        files = [[wheel.file, wheel.sha256] for wheel in self.wheels]
        return digest([sorted(files), self.python, self.arch, self.os])

    @property
    def smallest(self) -> Wheel:
        return min(self.wheels, key=lambda wheel: wheel.size_bytes)


def digest(identity: object) -> str:
    """16 hexadecimal digits that name a runtime on a target."""
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def lock_name(set_name: str, platform: Platform) -> str:
    return f"{set_name}-{platform.os}-{platform.arch}-cp{platform.python.replace('.', '')}.json"


def find_lock(packages: Iterable[str], platform: Platform) -> WheelLock | None:
    """The shipped lock of exactly these packages, if there is one whose wheels the platform accepts.

    Raises ConfigError for a file that isn't a lock.
    """
    wanted = tuple(sorted(packages))
    for path in sorted(LOCKS.glob(lock_name("*", platform))):
        lock = read_lock(path)
        found = (lock.packages, lock.python, lock.os, lock.arch)
        if found == (wanted, platform.python, platform.os, platform.arch):
            return lock if all(platform.accepts(wheel.file) for wheel in lock.wheels) else None
    return None


def read_lock(path: Path) -> WheelLock:
    try:
        return read_record(WheelLock, path)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path.name}: {reason(exc)}", "install edgephi again") from exc


def fetch_locked(lock: WheelLock, platform: Platform) -> Service[list[Path]]:
    """Fetch the files of a lock and its pip, each verified by its hash; downloaded once, then cached by that hash.

    Raises ConfigError with pip's own last words when a file can't be had.
    """
    return (yield from _in_turn(_fetch((*lock.wheels, lock.pip), platform)))


def _fetch(wanted: Sequence[Wheel], platform: Platform) -> Service[list[Path]]:
    missing = [wheel for wheel in wanted if not _is_cached(wheel)]
    if missing:
        with fresh_folder(cache_dir() / "wheels" / "download") as folder:
            lines = folder / "requirements.txt"
            lines.write_text("".join(f"{wheel.requirement}\n" for wheel in missing), encoding="utf-8")
            named = ", ".join(f"{wheel.name}=={wheel.version}" for wheel in missing)
            yield from _download(platform, folder, ["--no-deps", "--require-hashes", "-r", str(lines)], named)
            for wheel in missing:
                _keep(folder, wheel)
    return [_cached(wheel) for wheel in wanted]


def _cached(wheel: Wheel) -> Path:
    return cache_dir() / "wheels" / wheel.sha256 / wheel.file


def _is_cached(wheel: Wheel) -> bool:
    path = _cached(wheel)
    if not path.is_file():
        return False
    if sha256_of(path) == wheel.sha256:
        return True
    shutil.rmtree(path.parent)
    return False


def _keep(folder: Path, wheel: Wheel) -> None:
    """Move a downloaded file into the cache, under its hash, in one step. Raises ConfigError for another hash."""
    found = folder / wheel.file
    if not found.is_file() or sha256_of(found) != wheel.sha256:
        raise ConfigError(f"the index's {wheel.file} isn't the locked file", "is it an index that you trust?")
    with replaced_folder(_cached(wheel).parent) as fresh:
        found.rename(fresh / wheel.file)


def resolve(
    packages: Sequence[str], platform: Platform, folder_name: str, local_folder: Path | None
) -> Service[list[Path]]:
    """Fetch wheels of packages that no lock covers, all that they need, and pip's: resolved once by name and version,
    then cached.

    `local_folder` is asked before the index, for wheels that no index has. Raises ConfigError with pip's own last
    words when a package can't be resolved.
    """
    if local_folder:
        # With other wheels in that folder the answer may differ: it is cached under another name.
        found = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in local_folder.glob("*.whl"))
        folder_name = f"{folder_name}-{digest([str(local_folder.resolve()), found])}"
    return (yield from _in_turn(_resolve(packages, platform, cache_dir() / "wheels" / folder_name, local_folder)))


def _resolve(
    packages: Sequence[str], platform: Platform, folder: Path, local_folder: Path | None
) -> Service[list[Path]]:
    if not folder.is_dir():
        with replaced_folder(folder) as fresh:
            links = ["--find-links", str(local_folder)] if local_folder else []
            yield from _download(platform, fresh, [*links, *packages, "pip"], ", ".join(packages))
    return sorted(folder.glob("*.whl"))


def _in_turn(work: Service[T]) -> Service[T]:
    """Run a service while no other thread or process fetches: devices of one rollout want the same wheels at the same
    time.
    """
    with (yield from in_turn(cache_dir() / "wheels" / ".lock", "fetches wheels")):
        return (yield from work)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def target_options(platform: Platform) -> list[str]:
    """The options that have pip look for wheels of another machine."""
    options = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", platform.python]
    for tag in platform.tags:
        options += ["--platform", tag]
    return options


def _download(platform: Platform, folder: Path, what: Sequence[str], named: str) -> Service[None]:
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    status, said = yield from _run([*argv, *target_options(platform), "--dest", str(folder), *what])
    if status == 0:
        return
    if "No module named pip" in said:
        raise MissingExtra("fetching wheels needs pip in this Python", f"{sys.executable} -m ensurepip")
    other = re.search(r"DO NOT MATCH THE HASHES.*?\n +(\S+)", said, re.DOTALL)
    if other:
        raise ConfigError(f"the index's {other[1]} isn't the locked file", "is it an index that you trust?")
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")] or [said.strip()]
    raise ConfigError(
        f"no wheels of {named} for {platform}: {errors[-1].removeprefix('ERROR: ')}",
        "put the missing wheels into a folder and give it with --wheels",
    )


def _run(argv: Sequence[str]) -> Service[tuple[int, str]]:
    """The exit status and stderr of a command; closing the service ends the command."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    status = child.wait(timeout=_POLL_S)
                    break
                yield _WAITING
        finally:
            child.kill()
            child.wait()
        stderr.seek(0)
        return status, stderr.read()
