"""Operations that need the runtime: a fresh process of the runtime's own Python runs this same file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .layout import AGENT_FILE, ROOT
from .protocol import CHILD_REQUEST, AgentFailure, death_of
from .releases import read_pointer, release_folder, runtime_python


def start_child(request: dict[str, Any], *, stdin: int | None, stdout: int | None) -> subprocess.Popen[bytes]:
    pointer = read_pointer()
    release = request.get("release") or pointer["release"]
    runtime = request.get("runtime") or pointer["runtime"]
    if not release and "model_folder" not in request:
        raise AgentFailure("no_release", "nothing is active here", "`edgephi deploy BUNDLE TARGET` first")
    folder = request.get("model_folder") or release_folder(release)
    argv = [str(runtime_python(runtime)), "-u", str(AGENT_FILE)]
    environment = dict(os.environ, ORT_DISABLE_TELEMETRY="1")
    environment[CHILD_REQUEST] = request_file(json.dumps(dict(request, model_folder=str(folder))))
    return subprocess.Popen(argv, env=environment, stdin=stdin, stdout=stdout)


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


def wait_child(child: subprocess.Popen[bytes]) -> Any:
    """Pass on the events of a child; return its result.

    Raises AgentFailure with the child's own error or, when it ended without a word, with the signal or exit code.
    """
    assert child.stdout is not None, "start it with stdout=PIPE"
    result = None
    for line in child.stdout:
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
        name, hint = death_of(status) or (f"exit code {status}", None)
        raise AgentFailure("child_died", f"the runtime's process ended with {name}", hint)
    return result


def in_runtime(request: dict[str, Any]) -> Any:
    """Run a request whole in a fresh process of the runtime, its stdin closed."""
    child = start_child(request, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        return wait_child(child)
    finally:
        if child.poll() is None:
            child.kill()


def op_chat(request: dict[str, Any]) -> None:
    """Hold a conversation: after the request, every line of stdin is one JSON turn. It ends with stdin.

    The child inherits both streams, and tells the result itself.
    """
    child = start_child(request, stdin=None, stdout=None)
    status = child.wait()
    death = death_of(status)
    if death:
        raise AgentFailure("child_died", f"the runtime's process ended with {death[0]}", death[1])
    if status > 0:
        sys.exit(status)  # it has already said why
