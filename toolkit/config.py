"""Places on this machine: the user's folders, trouble with them in words, the data that comes with edgephi, and a path
as messages name it."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from toolkit.errors import ConfigError

_PACKAGE = Path(__file__).parent


def _user_dir(variable: str, kind: str) -> Path:
    from platformdirs import PlatformDirs

    override = os.environ.get(variable)
    if override:
        try:
            return Path(override).expanduser()
        except RuntimeError as exc:
            raise ConfigError(f"{variable}={override}: no such user", f"set {variable} to a folder") from exc
    return Path(getattr(PlatformDirs("edgephi", appauthor=False), f"user_{kind}_dir"))


def config_dir() -> Path:
    """The user's own profiles, targets and recipes. `EDGEPHI_CONFIG_DIR` overrides it."""
    return _user_dir("EDGEPHI_CONFIG_DIR", "config")


def cache_dir() -> Path:
    """Builds, bundles, wheels: all of it can be made again. `EDGEPHI_CACHE_DIR` overrides it."""
    return _user_dir("EDGEPHI_CACHE_DIR", "cache")


def data_dir() -> Path:
    """Reports and logs: measurements that can't be made again. `EDGEPHI_DATA_DIR` overrides it."""
    return _user_dir("EDGEPHI_DATA_DIR", "data")


def data_path(name: str) -> Path:
    """A file or folder of `toolkit/data`, which comes with every installation."""
    return _PACKAGE / "data" / name


def import_root() -> Path:
    """The folder from which a child process imports this very `toolkit`."""
    return _PACKAGE.parent


@cache
def shipped_dir(name: str) -> Path:
    """Folder `name` (profiles, targets, workloads, recipes, boards) that came with edgephi.

    A wheel carries the top-level folders under `toolkit/_shipped`; a checkout has them beside the package.
    """
    if name in ("recipes", "boards"):
        return data_path(name)
    installed = _PACKAGE / "_shipped" / name
    if installed.is_dir():
        return installed
    return _PACKAGE.parent / {"workloads": "benchmarks/workloads"}.get(name, name)


def shown(path: Path) -> str:
    """A path as messages name it: relative where it lies below the working folder."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def trouble(exc: OSError, path: Path, what: str = "cannot be read or written") -> ConfigError:
    """The error in words for an input or output error at `path`: the reason, and the way out of it."""
    blocking = _file_in_the_way(path) if exc.errno in (errno.ENOTDIR, errno.EEXIST) else None
    if blocking is not None:
        reason: object = f"{shown(blocking)} is a file where a folder is needed"
    else:
        reason = exc.strerror or exc
    return ConfigError(f"{shown(path)}: {what}: {reason}", _way_out(exc.errno, path))


def trouble_of_this_machine(exc: OSError) -> ConfigError | None:
    """The error in words for an OSError that the machine caused: a full disk, a missing permission, a broken folder of
    edgephi's own; None for one that may be a mistake in edgephi."""
    path = Path(os.fsdecode(exc.filename)) if isinstance(exc.filename, (str, bytes)) and exc.filename else None
    if path is not None and (exc.errno in _MACHINE or _own(path)):
        return trouble(exc, path)
    if exc.errno in _FULL:
        full = next((folder for _, folder in _own_folders() if _free_bytes(folder) < _NEARLY_NOTHING_BYTES), None)
        if full is not None:
            return trouble(exc, full, "cannot be written")
        return ConfigError(f"{exc.strerror} on one of this machine's disks", "df -h tells which: free some space there")
    if exc.errno in (errno.EMFILE, errno.ENFILE):
        return ConfigError(str(exc.strerror), _way_out(exc.errno, Path()))
    if exc.errno == errno.ENOENT and "No usable temporary directory" in str(exc):
        return ConfigError("there is no temporary folder that can be written", "set TMPDIR to one")
    return None


_FULL = (errno.ENOSPC, errno.EDQUOT)
_NEARLY_NOTHING_BYTES = 1 << 16
# With these the machine refused, whoever owns the path.
_MACHINE = (
    *_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOTDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.ESTALE,
)  # fmt: skip


def _own_folders() -> list[tuple[str, Path]]:
    """Each folder of edgephi's own with the environment variable that names another one; also the hub's cache."""
    hub = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    names = (("CACHE", cache_dir), ("DATA", data_dir), ("CONFIG", config_dir))
    return [*((f"EDGEPHI_{name}_DIR", folder().absolute()) for name, folder in names), ("HF_HOME", hub)]


def _own(path: Path) -> str | None:
    """The variable that moves the folder of edgephi's own in which a path lies; None for other paths."""
    path = path.absolute()
    found = [(variable, folder) for variable, folder in _own_folders() if path.is_relative_to(folder)]
    return max(found, key=lambda entry: len(entry[1].parts))[0] if found else None


def _file_in_the_way(path: Path) -> Path | None:
    """The nearest thing at or above `path` that exists, if that is no folder."""
    for part in (path.absolute(), *path.absolute().parents):
        if os.path.lexists(part):
            return None if part.is_dir() or part == path.absolute() else part
    return None


def _free_bytes(folder: Path) -> int:
    import shutil

    for part in (folder, *folder.parents):
        try:
            return shutil.disk_usage(part).free
        except OSError:
            continue
    return _NEARLY_NOTHING_BYTES


def _way_out(number: int | None, path: Path) -> str | None:
    variable = _own(path)
    other = f"set {variable} to another folder" if variable else "take another folder"
    if number in _FULL:
        whose = "your quota" if number == errno.EDQUOT else "the disk"
        listed = ", edgephi cache list shows what edgephi keeps" if variable == "EDGEPHI_CACHE_DIR" else ""
        return f"free some space: {whose} is full{listed}; or {other}"
    if number in (errno.EMFILE, errno.ENFILE):
        return "raise the limit on open files: ulimit -n 4096"
    if number == errno.EIO:
        return f"the disk may be failing; {other}"
    if number == errno.EROFS:
        return f"its file system is mounted read-only; {other}"
    if number in (errno.EACCES, errno.EPERM):
        return f"give yourself the permission (ls -ld {shown(path)}), or {other}"
    return other if variable else None


def is_path(word: str) -> bool:
    """Tell if a word of a command line is a path, rather than the name of a thing that edgephi keeps."""
    return "/" in word or os.sep in word or word in (".", "..")


def suggestion(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
