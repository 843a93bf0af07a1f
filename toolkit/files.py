"""Files of this machine: written whole or not at all, copied, locked and held between processes.

`write_whole` and `replaced_folder` raise ConfigError that names the path; `put_file`, `fresh_folder` and `put_folder`,
on which they are built, raise OSError.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from toolkit.config import trouble
from toolkit.errors import ConfigError
from toolkit.events import Progress, Service, Step

# The mode of a file that only its user can read.
PRIVATE = 0o600
_CHUNK = 4 << 20
# Names beside a file repeat no more than this of its name, so that every file system takes them.
_LONGEST_STEM = 32
# No file takes this long to write: an older temporary file was left by a process that died.
_ABANDONED_S = 3600
_LOCK, _NEW, _OLD = "lock", "new", "old"
_POLL_S = 0.2
_LOCKED_BYTE = 1 << 30
# The request of Linux's ioctl that has one file share another's blocks until one of them is written.
_FICLONE = 0x40049409
# The text that the holder of a lock writes into it: its process id and the machine's name.
_SIGNED = re.compile(r"([0-9]{1,10}) (.*)\n")
_US = "this process"


def write_whole(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Write a file as `put_file` does. Raises ConfigError that names it when that fails."""
    with in_words(path):
        put_file(path, content, mode=mode)


def put_file(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Write a file whole or not at all, and flush it to the disk; a missing folder is made.

    Text is encoded as UTF-8 and keeps its line ends. `mode` is the file's permissions, by default those of a new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_files(path)
    # The temporary name has another ending: a leftover *.toml would show up as a target.
    beside = path.with_name(f".{path.name[:_LONGEST_STEM]}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(beside, flags, 0o666 if mode is None else 0o600), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if mode is not None:
                beside.chmod(mode)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn an OSError from within into a ConfigError that says that `path` can't be written, and the way out."""
    try:
        yield
    except OSError as exc:
        raise trouble(exc, path, "cannot be written") from exc


def _sweep_files(path: Path) -> None:
    left = re.compile(rf"\.{re.escape(path.name[:_LONGEST_STEM])}\.[0-9a-f]{{8}}\.tmp")
    for file in path.parent.iterdir():
        if left.fullmatch(file.name):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > _ABANDONED_S:
                    file.unlink()


@contextmanager
def replaced_folder(path: Path, *, over_content: bool = False, durable: bool = True) -> Iterator[Path]:
    """Give a fresh folder beside `path`, and put it there, as `put_folder` does, if the block succeeds.

    After an error or a kill the old folder is there. Raises ConfigError when folders can't be made or moved; exceptions
    from within pass through.
    """
    with contextlib.ExitStack() as stack:
        with in_words(path):
            fresh = stack.enter_context(fresh_folder(path))
        yield fresh
        with in_words(path):
            put_folder(fresh, path, over_content=over_content, durable=durable)


@contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """Give a new, empty folder on the disk of `path`; it is removed at the end unless it was moved.

    Folders that dead processes left for the same `path` are removed too.
    """
    with _room(path) as room:
        fresh = room / _NEW
        fresh.mkdir()
        yield fresh


def put_folder(folder: Path, path: Path, *, over_content: bool = False, durable: bool = True) -> None:
    """Move a folder to `path`, which is free, or an empty folder, or with `over_content` anything.

    With `durable` its content is flushed to the disk first. A kill between the two moves of a replacement leaves the
    old folder beside `path`; the next `fresh_folder` for `path` puts it back.
    """
    path = path.absolute()
    if durable:
        _sync_tree(folder)
    with contextlib.ExitStack() as stack:
        if os.path.lexists(path) and over_content:
            aside = stack.enter_context(_room(path)) / _OLD
            aside.mkdir()
            path.rename(aside / path.name)
        elif os.path.lexists(path):
            # Windows moves no folder over another, not even over an empty one.
            path.rmdir()
        folder.replace(path)
    _sync_folder(path.parent)


@contextmanager
def _room(path: Path) -> Iterator[Path]:
    """Give a folder beside `path` for its new and its old content; the holder of the folder's lock owns it."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name[:_LONGEST_STEM]
    sweep(path.parent, re.escape(name))
    room, lock = _new_room(path.with_name(f".{name}"))
    try:
        with lock:
            try:
                yield room
            finally:
                _leave(room)
    finally:
        # Windows removes no file that is open: the lock.
        _leave(room)


def _new_room(stem: Path) -> tuple[Path, IO[bytes]]:
    while True:
        room = stem.with_name(f"{stem.name}-{secrets.token_hex(4)}.part")
        room.mkdir()
        # A sweeper may come before the lock is made or taken: then the room is the sweeper's, or gone.
        with contextlib.suppress(FileNotFoundError):
            lock = (room / _LOCK).open("xb")
            try:
                if _try_lock(lock) and (room / _LOCK).exists():
                    return room, lock
            except OSError:
                # A file system without locks: nobody can sweep there either.
                return room, lock
            lock.close()


def sweep(folder: Path, name: str = ".*") -> list[Path]:
    """Remove the rooms in `folder` that dead processes left, of paths whose names match the pattern `name`.

    Returns them. A room whose owner lives stays, and so does what can't be removed. The folder may be missing.
    """
    rooms = abandoned(folder, name)
    for room in rooms:
        with contextlib.suppress(OSError):
            _sweep_room(room)
    return [room for room in rooms if not room.exists()]


def abandoned(folder: Path, name: str = ".*") -> list[Path]:
    """The rooms that `sweep` would remove."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    rooms = [entry for entry in entries if re.fullmatch(rf"\.{name}-[0-9a-f]{{8}}\.part", entry.name)]
    return [room for room in rooms if is_free(room / _LOCK)]


def is_free(path: Path) -> bool:
    """Tell if nobody holds the lock at `path`; a lock without a file is free."""
    try:
        with path.open("r+b") as lock:
            return _try_lock(lock)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _sweep_room(room: Path) -> None:
    try:
        lock = (room / _LOCK).open("r+b")
    except FileNotFoundError:
        # Its owner was killed before it had a lock.
        room.rmdir()
        return
    with lock:
        if not _try_lock(lock):
            return
        _leave(room)
    _leave(room)


def _leave(room: Path) -> None:
    """Put back an old folder that nothing has replaced, then remove the room."""
    for old in (room / _OLD).glob("*"):
        place = room.parent / old.name
        if not os.path.lexists(place):
            old.rename(place)
    shutil.rmtree(room, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    # Windows opens no folder, and no read-only file in a way that lets it be flushed.
    if sys.platform == "win32":
        return
    for top, _, names in os.walk(folder):
        for file in (Path(top, name) for name in names):
            if stat.S_ISREG(file.lstat().st_mode):
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        _sync_folder(Path(top))


def _sync_folder(folder: Path) -> None:
    # Some file systems can't flush a folder, and Windows needn't: its renames are journaled.
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the copy takes no room where the file system clones (Btrfs, XFS). `target` must not exist."""
    with source.open("rb") as reading, target.open("xb") as writing:
        if sys.platform == "linux":
            import fcntl

            # Most file systems, and two different ones, refuse.
            with contextlib.suppress(OSError):
                fcntl.ioctl(writing, _FICLONE, reading.fileno())
                return
        shutil.copyfileobj(reading, writing, _CHUNK)


@contextmanager
def locked(path: Path, doing: str, hint: str = "wait for it, or end it", *, passing: bool = False) -> Iterator[None]:
    """Hold the lock at `path`, which one thread of one process has at a time; the end of the process frees it.

    Raises ConfigError when it is taken, which names the holder and what it is `doing` ("runs the same search"). With
    `passing` the lock's file is removed when the lock is released.
    """
    file = _take(path)
    if file is None:
        raise ConfigError(f"{_holder(path)} {doing}", hint)
    with _held(file, path, passing=passing):
        yield


def in_turn(path: Path, doing: str) -> Service[AbstractContextManager[None]]:
    """Wait for the lock at `path`, and return it as a context: `with (yield from in_turn(path, "builds the same")):`.

    One Step names the holder and what it is `doing`, unless this very process holds it, whose own events are heard. A
    Progress at each look lets the caller end the wait.
    """
    told = False
    while (file := _take(path)) is None:
        waiting = f"wait: {(holder := _holder(path))} {doing}"
        if not told and holder != _US:
            told = True
            yield Step(waiting)
        yield Progress(waiting, 0, None)
        time.sleep(_POLL_S)
    return _held(file, path)


def hold_folder(folder: Path, *, alone: bool = False) -> Callable[[], None] | None:
    """Hold a folder without writing into it: many may hold it at once, or one `alone`; the process's end ends it.

    Returns the function that ends the hold; None when the folder is held otherwise, or isn't there. Where folders can't
    be held nobody is kept out: Windows itself removes no file that is open.
    """
    if sys.platform == "win32":
        return lambda: None
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        # NFS locks nothing that is opened for reading.
        pass
    return functools.partial(os.close, descriptor)


def _take(path: Path) -> IO[bytes] | None:
    """Take a lock: its file with our process id in it, None when it is taken. Raises ConfigError when it can't lock."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = path.open("a+b")
            try:
                if not _try_lock(file):
                    file.close()
                    return None
                # The last holder may have removed the file since we opened it.
                if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            except BaseException:
                file.close()
                raise
            file.close()
    except OSError as exc:
        raise trouble(exc, path, "cannot be locked") from exc
    # On a full disk the lock is held without the holder's name.
    with contextlib.suppress(OSError):
        file.truncate(0)
        os.write(file.fileno(), f"{os.getpid()} {platform.node()}\n".encode())
    return file


@contextmanager
def _held(file: IO[bytes], path: Path, *, passing: bool = False) -> Iterator[None]:
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)
            if passing and sys.platform != "win32":
                path.unlink(missing_ok=True)
    if passing and sys.platform == "win32":
        # Windows doesn't remove a file that another process has open, so nobody can take a lock whose file is gone.
        with contextlib.suppress(OSError):
            path.unlink()


def _holder(path: Path) -> str:
    """Name the holder of a lock, as far as its file tells; with the machine's name when that isn't ours."""
    try:
        found = _SIGNED.fullmatch(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    if found is None:
        return "another process"
    if found[2] != platform.node():
        return f"another process ({found[1]} on {found[2]})"
    return _US if int(found[1]) == os.getpid() else f"another process ({found[1]})"


def _try_lock(file: IO[bytes]) -> bool:
    """Take the lock on an open file if it is free. Closing the file, or the end of the process, releases it.

    Raises OSError where the file system has no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            # Windows lets nobody read a locked byte: so the lock is on one far behind the holder's name.
            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True
