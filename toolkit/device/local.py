"""This machine as a target: commands are children, files are copied."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from toolkit.device.streams import Feeder, Tail, split_lines
from toolkit.device.transport import End, Pace, device_full
from toolkit.errors import RemoteCommandFailed
from toolkit.localhost import without_secrets

WHERE = "this machine"
_READ_BYTES = 64 * 1024
_STEP_BYTES = 16 * 1024 * 1024
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


class LocalProcess:
    """A child process in a session of its own, so that `kill` reaches its children too."""

    def __init__(self, argv: Sequence[str], home: Path) -> None:
        self._child = subprocess.Popen(
            list(argv),
            cwd=home,
            env=without_secrets(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self._child.stdin and self._child.stdout and self._child.stderr
        self._stdin, self._stdout = self._child.stdin, self._child.stdout
        self._tail = Tail(partial(self._child.stderr.read, _READ_BYTES))
        self._feeder = Feeder(self._write, self._stdin.close)

    def send(self, data: bytes) -> None:
        self._feeder.put(data)

    def close_stdin(self) -> None:
        self._feeder.close()

    def lines(self) -> Iterator[bytes]:
        return split_lines(partial(self._stdout.read, _READ_BYTES))

    def wait(self) -> int:
        status = self._child.wait()
        self._feeder.close()
        self._tail.finish(timeout_s=1)
        return 128 - status if status < 0 else status

    def stderr_tail(self) -> str:
        return self._tail.text()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(self._child.pid, signal.SIGKILL)
            else:
                self._child.kill()

    def _write(self, data: bytes) -> None:
        # A command may end without reading all of its stdin; its exit status tells if that was right.
        view = memoryview(data)
        with suppress(BrokenPipeError):
            while view:
                view = view[self._stdin.write(view) :]


class LocalTransport:
    """The transport to this machine; the login folder is the user's home folder."""

    windows = sys.platform == "win32"
    shell_name = "none: commands are started directly"

    def __init__(self) -> None:
        self._home = Path.home()

    def start(self, argv: Sequence[str]) -> LocalProcess:
        """Raises RemoteCommandFailed when the command doesn't exist or can't be run."""
        try:
            return LocalProcess(argv, self._home)
        except OSError as exc:
            raise RemoteCommandFailed(f"{WHERE}: cannot start '{argv[0]}': {exc.strerror}") from exc

    def put(
        self,
        source: Path,
        destination: str,
        offset: int = 0,
        end: End | None = None,
        pace: Pace | None = None,  # noqa: ARG002  nothing is sent anywhere
    ) -> Iterator[int]:
        target = self._path(destination)
        total = source.stat().st_size
        wanted = (total if end is None else end(offset)) - offset
        with self._explained(f"cannot write {target}", target.parent, wanted):
            # An earlier edgephi made the target another name of the source: opening it for writing would empty both.
            if target.exists() and target.samefile(source):
                yield wanted
            else:
                yield from _copy(source, target, offset, wanted, keep=offset > 0 or end is not None)

    def make_dirs(self, path: str) -> None:
        folder = self._path(path)
        with self._explained(f"cannot create {folder}", folder, 0):
            missing = [part for part in (folder, *folder.parents) if not part.exists()]
            for part in reversed(missing):
                part.mkdir(mode=0o700, exist_ok=True)
            if not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def size(self, path: str) -> int | None:
        file = self._path(path)
        return file.stat().st_size if file.is_file() else None

    def close(self) -> None:
        """There is no connection to close."""

    def _path(self, path: str) -> Path:
        return self._home / path.removeprefix("~/")

    @contextmanager
    def _explained(self, action: str, folder: Path, needs_bytes: int) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno in _DISK_FULL:
                free = shutil.disk_usage(folder).free
                raise device_full(WHERE, needs_bytes, free, str(folder)) from exc
            raise RemoteCommandFailed(f"{WHERE}: {action}: {exc.strerror}") from exc


def _copy(source: Path, target: Path, offset: int, length: int, *, keep: bool) -> Iterator[int]:
    # Not a hard link: a change of one file would be a change of both, and repairing one of them impossible.
    # A new file is this user's alone, whatever the umask.
    target.touch(mode=0o600)
    with source.open("rb") as reading, target.open("r+b" if keep else "wb") as writing:
        reading.seek(offset)
        writing.seek(offset)
        step = _kernel_step if hasattr(os, "copy_file_range") else _buffer_step
        while length:
            try:
                done = step(reading.fileno(), writing.fileno(), min(length, _STEP_BYTES))
            except OSError as exc:
                if step is _buffer_step or exc.errno not in _NO_KERNEL_COPY:
                    raise
                step = _buffer_step
                continue
            if done == 0:
                return
            length -= done
            yield done


def _kernel_step(reading: int, writing: int, count: int) -> int:
    return os.copy_file_range(reading, writing, count)


def _buffer_step(reading: int, writing: int, count: int) -> int:
    data = os.read(reading, count)
    view = memoryview(data)
    while view:
        view = view[os.write(writing, view) :]
    return len(data)
