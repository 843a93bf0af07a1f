"""edgephi's agent: everything that happens on a target. Standard library only, Python 3.9 syntax.

The host packs these parts into one file, which lies as <install_root>/agent/agent-<hash>.pyz and works on that root:

    blobs/sha256/<hash>     verified files, read-only   incoming/<hash>.part   files on their way
    releases/<bundle-id>/   links into blobs            runtimes/<lock>/       virtual environments
    blocks/<hash>.json      the parts of a large blob
    current.json            the pointer                 lock, push.lock        held while something changes or arrives

Protocol: constant argv (`python -u agent-….pyz`), one JSON request as the first line of stdin, JSON lines on
stdout, each with `protocol: 1` and one of `event`, `result`, `error`. Logs go to stderr. Operations that need
the runtime run in a fresh process of the runtime's own Python. Times are raw nanoseconds; statistics are the
host's work.

By hand, on the device, without any host:

    echo '{"protocol": 1, "op": "releases"}' | python3 ~/.edgephi/agent/agent-*.pyz
    echo '{"protocol": 1, "op": "rollback"}' | python3 ~/.edgephi/agent/agent-*.pyz
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from .layout import ROOT
from .protocol import CHILD_REQUEST, NO_MEMORY, PROTOCOL, AgentFailure, emit, one_line
from .settle import refuse_if_damaged, refuse_if_exposed


class Operation(NamedTuple):
    """The part and the function of an operation, and the keys that it reads of a request beside `protocol`, `op` and
    `by`: the required and the optional ones.
    """

    place: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


# The keys that every operation in a process of a runtime may have: for starting it, and for loading a model there.
IN_RUNTIME = ("release", "runtime", "model_folder", "settings")
REFERENCE = ("text", "folder", "tokens", "window_tokens", "prompts", "prompt_tokens", "match_tokens")
# The places are texts, so that a small board imports only the part of the requested operation, and what that needs.
OPS = {
    "settle": Operation("settle.op_settle"),
    "probe": Operation("facts.op_probe"),
    "hold": Operation("store.op_hold", ("artifacts",), ("chunk_bytes", "release")),
    "missing": Operation("store.op_missing", ("artifacts",), ("chunk_bytes", "release")),
    "reuse": Operation("reuse.op_reuse", ("files",)),
    "install": Operation("store.op_install", ("release", "manifest"), ("signatures", "blocks")),
    "discard": Operation("store.op_discard", ("sha256",)),
    "activate": Operation("releases.op_activate", ("release", "runtime")),
    "rollback": Operation("releases.op_rollback"),
    "deactivate": Operation("releases.op_deactivate"),
    "releases": Operation("releases.op_releases"),
    "manifest": Operation("releases.op_manifest", ("release",)),
    "pull": Operation("pull.op_pull", ("artifacts", "sources"), ("limit_bytes_per_s",)),
    "verify": Operation("upkeep.op_verify", (), ("release", "repair")),
    "prune": Operation("upkeep.op_prune", ("keep",), ("dry_run",)),
    "pythons": Operation("pythons.op_pythons"),
    "provision": Operation(
        "runtimes.op_provision", ("lock",), ("packages", "wheels", "locked", "smallest", "query_only")
    ),
    "check": Operation("children.in_runtime", ("prompt", "tokens"), IN_RUNTIME),
    "reference": Operation("children.in_runtime", REFERENCE, IN_RUNTIME),
    "evaluate": Operation("children.in_runtime", ("windows", "continuations"), IN_RUNTIME),
    "bench": Operation("bench.op_bench", ("workload", "prompt"), (*IN_RUNTIME, "cold", "quality_text")),
    "measure": Operation("speed.op_measure", ("runtime", "kernel", "input"), ("settings",)),
    "chat": Operation("children.op_chat", (), (*IN_RUNTIME, "sampling")),
    "score": Operation("children.op_chat", (), IN_RUNTIME),
}
# The functions of operations in a process of a runtime, which is given the whole request.
CHILD_OPS = {
    "check": "inference.child_check",
    "bench": "bench.child_bench",
    "measure": "speed.child_measure",
    "chat": "chat.child_chat",
    "score": "tasks.child_score",
    "reference": "quality.child_reference",
    "evaluate": "quality.child_evaluate",
}


def main() -> None:
    # All files that are made from here on, also by children, are this user's alone.
    os.umask(0o077)
    inner = os.environ.pop(CHILD_REQUEST, None)
    try:
        refuse_if_damaged()
        if inner is None:
            result = operate(read_request(), {op: operation.place for op, operation in OPS.items()})
        else:
            result = operate(take_request(Path(inner)), CHILD_OPS)
        if result is not None:
            emit("result", result)
    except AgentFailure as exc:
        fail(exc.code, exc.message, exc.hint)
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            os._exit(1)  # the host has gone: nobody is left to tell
        code = "device_full" if exc.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)) else "os"
        fail(code, f"{exc.strerror}: {exc.filename or ROOT}")
    except MemoryError:
        fail("child_died", "out of memory", NO_MEMORY)
    except (KeyError, TypeError, ValueError) as exc:
        traceback.print_exc()
        fail("bad_request", f"{type(exc).__name__}: {exc}")
    except Exception as exc:  # the runtime raises RuntimeError, and whatever its libraries raise
        traceback.print_exc()
        who = "agent" if inner is None else "runtime"
        fail("failed", f"the {who} failed: {one_line(f'{type(exc).__name__}: {exc}')}")


def read_request() -> str:
    """The first line of stdin, unbuffered: a conversation's later lines stay in the pipe for the child that reads
    them.
    """
    with os.fdopen(0, "rb", buffering=0, closefd=False) as stdin:
        return stdin.readline().decode("utf-8")


def take_request(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    path.unlink()
    return text


def operate(text: str, places: dict[str, str]) -> Any:
    request = json.loads(text)
    if not isinstance(request, dict) or request.get("protocol") != PROTOCOL or request.get("op") not in places:
        raise AgentFailure("bad_request", f"unknown request: {text[:200]!r}")
    if request["op"] not in ("probe", "settle"):  # probe reports an exposed root, settle first removes its own file
        refuse_if_exposed()
    part, _, name = places[request["op"]].partition(".")
    return getattr(importlib.import_module(f".{part}", __package__), name)(request)


def fail(code: str, message: str, hint: str | None = None) -> None:
    emit("error", {"code": code, "message": message, "hint": hint})
    sys.exit(1)
