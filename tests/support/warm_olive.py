"""Builds by an Olive that is imported already: each in a process of its own, forked from one that has imported it.

Olive, torch and transformers take seven seconds of processor time to import, a build of the reference model two. Only
the start of Python differs: the build, its supervision, its end and its failures are the same. `test_runner`,
`test_build` and the tests of commands start Olive as users do, and compare the results with these builds.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

_HEAVY = (
    "olive.workflows",
    "olive.passes.onnx.model_builder",
    "olive.passes.pytorch.gptq",
    "datasets",
    "onnxruntime_genai.models.builder",
    "onnxruntime_genai.models.quantized_model",
    "transformers.models.phi3.modeling_phi3",
    "toolkit.optimize.child",
    "toolkit.optimize.streaming",
)
_LARGEST_REQUEST = 1 << 20


@contextmanager
def warm_olive() -> Iterator[None]:
    """Let builds of this process find Olive imported; the builds of commands that it starts don't."""
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.optimize.runner._child", _child)
        yield


class Forked:
    """A process that the server has forked, with the part of `subprocess.Popen` that its watcher uses."""

    def __init__(self, server: socket.socket, stdin: IO[bytes]) -> None:
        self.stdin = stdin
        self.returncode: int | None = None
        self._server = server
        self.pid = self._receive(0)

    def _receive(self, flags: int) -> int:
        message = self._server.recv(64, flags)
        assert message, "the process that has imported Olive has ended; server.log beside the builds says why"
        return int(message)

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                self.returncode = self._receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = self._receive(0)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


@contextmanager
def _child(config: Path, work: Path, log: Path) -> Iterator[Forked]:
    """The replacement for the runner's function of this name."""
    from toolkit.optimize import runner

    request = {"config": str(config), "work": str(work), "environment": runner.child_environment(work)}
    reading, writing = os.pipe()
    server = _server()
    with log.open("wb") as output, os.fdopen(reading, "rb"):
        socket.send_fds(server, [json.dumps(request).encode()], [reading, output.fileno()])
        process = Forked(server, os.fdopen(writing, "wb"))
    try:
        yield process
    finally:
        runner._end(process)  # type: ignore[arg-type]


@cache
def _server() -> socket.socket:
    """The connection to this process's server; closing it ends the server."""
    from tests.support.builds import session_cache
    from toolkit.optimize import runner

    root = session_cache(f"warm Olive of {os.getpid()}")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (root / "server.log").open("wb") as log, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=root,
            env=runner.child_environment(root),
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _serve(connection: socket.socket) -> None:
    """Fork a process for each request; answer with its id, then with its return code in Popen's form."""
    for name in _HEAVY:
        importlib.import_module(name)
    while True:
        message, files, _, _ = socket.recv_fds(connection, _LARGEST_REQUEST, 2)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            connection.close()
            _build(json.loads(message), *files)
        for file in files:
            os.close(file)
        connection.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _build(request: dict[str, str], stdin: int, output: int) -> None:
    """Turn this process into one of `python -m toolkit.optimize.child`."""
    from toolkit.optimize.child import main

    os.setsid()
    for theirs, standard in ((stdin, 0), (output, 1), (output, 2)):
        os.dup2(theirs, standard)
    os.close(stdin)
    os.close(output)
    os.chdir(request["work"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    sys.exit(main(Path(request["config"])))


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
