"""The store's two locks: one for the process that changes it, one for the pusher. A waiting host is told for whom."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .layout import ROOT
from .protocol import emit
from .reading import read_text

LOCK_POLL_S = 0.1
WAITING_S = 5.0
LOCKED_BYTE = 1 << 30


@contextlib.contextmanager
def held(name: str, request: dict[str, Any]) -> Iterator[None]:
    """Hold one of the store's locks, `lock` (it changes) or `push.lock` (files arrive); the system frees it at our end.

    While another process holds it we wait, and name that one to the host again and again: if the host has gone, that
    ends us.
    """
    ROOT.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (ROOT / name).open("a+b") as file:
        told = None
        while not try_lock(file):
            if told is None or time.monotonic() - told > WAITING_S:
                told = time.monotonic()
                emit("event", {"type": "waiting", "holder": read_holder(ROOT / name)})
            time.sleep(LOCK_POLL_S)
        holder = {"by": str(request.get("by", "?"))[:200], "op": request["op"], "since_unix_s": time.time()}
        # On a full or read-only disk the lock holds without a name.
        with contextlib.suppress(OSError):
            file.truncate(0)
            os.write(file.fileno(), json.dumps(holder).encode("utf-8"))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def try_lock(file: Any) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            # Windows lets nobody read a locked byte: the locked one is far behind the holder's name.
            file.seek(LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise


def read_holder(path: Path) -> dict[str, Any] | None:
    """The holder of a lock; None in the moment before it has written its name."""
    try:
        holder: dict[str, Any] = json.loads(read_text(path))
    except ValueError:
        return None
    return holder
