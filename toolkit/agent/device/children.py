"""Operations that need the runtime: a fresh process of the runtime's own Python runs this same file."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from toolkit.localhost.pip import own_environment

from .layout import AGENT_FILE, ROOT
from .protocol import CHILD_REQUEST, AgentFailure, death_of, last_words
from .releases import read_pointer, release_folder, runtime_python

# The end of a child's stderr that is kept: an abort prints a line, a traceback some dozens.
KEPT_WORDS = 8192


class Child(threading.Thread):
    """A process of the runtime. This thread passes its stderr on and keeps the end of it, which says why it died."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self.process = process
        self._said = b""
        self.start()

    def run(self) -> None:
        assert self.process.stderr is not None, "start it with stderr=PIPE"
        for line in self.process.stderr:
            self._said = (self._said + line)[-KEPT_WORDS:]
            with contextlib.suppress(OSError):  # the host has gone; the child mustn't wait for a reader for ever
                sys.stderr.buffer.write(line)
                sys.stderr.flush()

    def wait(self) -> int:
        """Wait for its end and for its last words; return its status as `subprocess` has it."""
        status = self.process.wait()
        self.join(timeout=5)  # a process that it left behind may hold its stderr open
        return status

    def failure(self, status: int) -> AgentFailure:
        """The error for a child that ended without an answer: the cause, and the last words that it said."""
        name, hint = death_of(status) or (f"exit code {status}", None)
        words = last_words(self._said.decode("utf-8", "replace"))
        return AgentFailure(
            "child_died", f"the runtime's process ended with {name}{': ' + words if words else ''}", hint
        )


def start_child(request: dict[str, Any], *, stdin: int | None, stdout: int | None) -> Child:
    """Start the runtime's own Python on this file; its user's settings of Python are no matter to it."""
    pointer = read_pointer()
    release = request.get("release") or pointer["release"]
    runtime = request.get("runtime") or pointer["runtime"]
    if not release and "model_folder" not in request:
        raise AgentFailure("no_release", "nothing is active here", "`edgephi deploy BUNDLE TARGET` first")
    folder = request.get("model_folder") or release_folder(release)
    argv = [str(runtime_python(runtime)), "-I", "-u", str(AGENT_FILE)]
    environment = dict(own_environment(os.environ), ORT_DISABLE_TELEMETRY="1")
    environment[CHILD_REQUEST] = request_file(json.dumps(dict(request, model_folder=str(folder))))
    return Child(subprocess.Popen(argv, env=environment, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE))


def request_file(text: str) -> str:
    """Write a private file for the child: a request may be longer than an argument, and stdin is the conversation's.

    A release has to work on a full or read-only disk too: then the file goes to the system's folder for temporary ones.
    """
    try:
        return private_file(text, ROOT)
    except OSError:
        return private_file(text, None)


def private_file(text: str, folder: Path | None) -> str:
    handle, path = tempfile.mkstemp(prefix=".request-", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        Path(path).unlink()
        raise
    return path


def wait_child(child: Child) -> Any:
    """Pass on the events of a child; return its result.

    Raises AgentFailure with the child's own error or, when it ended without one, with the signal or exit code and the
    last words that it said on stderr.
    """
    stdout = child.process.stdout
    assert stdout is not None, "start it with stdout=PIPE"
    result = None
    for line in stdout:
        message = json.loads(line)
        if "result" in message:
            result = message["result"]
        elif "error" in message:
            child.wait()
            raise AgentFailure(**message["error"])
        else:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
    status = child.wait()
    if result is None:
        raise child.failure(status)
    return result


def in_runtime(request: dict[str, Any]) -> Any:
    """Run a request whole in a fresh process of the runtime, its stdin closed."""
    child = start_child(request, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        return wait_child(child)
    finally:
        if child.process.poll() is None:
            child.process.kill()


def op_chat(request: dict[str, Any]) -> None:
    """Hold a conversation: after the request, every line of stdin is one JSON turn. It ends with stdin.

    The child inherits both streams, and tells the result itself.
    """
    child = start_child(request, stdin=None, stdout=None)
    status = child.wait()
    if death_of(status):
        raise child.failure(status)
    if status > 0:
        sys.exit(status)  # it has already said why
