"""One command of the embedded server: a child process wired to a channel."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO, Any

import paramiko

from toolkit.localhost import without_secrets

_READ_BYTES = 32 * 1024
_GONE = (paramiko.SSHException, EOFError, OSError)


def run_command(channel: Any, argv: Sequence[str | bytes], folder: Path, environment: Mapping[str, str]) -> None:
    """Run a command in `folder`; its whole process group is killed when the channel closes."""
    child = subprocess.Popen(
        argv,
        cwd=folder,
        env=without_secrets() | dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    assert child.stdin and child.stdout and child.stderr
    Thread(target=_feed, args=(channel, child, child.stdin), daemon=True).start()
    pumps = [
        Thread(target=_pump, args=(child.stdout, channel.sendall), daemon=True),
        Thread(target=_pump, args=(child.stderr, channel.sendall_stderr), daemon=True),
    ]
    for pump in pumps:
        pump.start()
    status = _wait(channel, child)
    for pump in pumps:
        pump.join()
    with suppress(*_GONE):
        channel.send_exit_status(128 - status if status < 0 else status)
        channel.shutdown_write()
        channel.close()


def _wait(channel: Any, child: subprocess.Popen[bytes]) -> int:
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=0.1)
        if channel.closed:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def _feed(channel: Any, child: subprocess.Popen[bytes], stdin: IO[bytes]) -> None:
    # The child may end, or close its stdin, while the channel still has something for it.
    with suppress(BrokenPipeError), stdin:
        while child.poll() is None and (data := channel.recv(_READ_BYTES)):
            view = memoryview(data)
            while view:
                view = view[stdin.write(view) :]


def _pump(stream: IO[bytes], send: Callable[[bytes], object]) -> None:
    with suppress(*_GONE), stream:
        while data := stream.read(_READ_BYTES):
            send(data)
