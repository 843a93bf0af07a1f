"""Run an Olive workflow in a child process, watch it, and name the cause if it fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.config import data_dir, import_root, shown
from toolkit.errors import BuildError, HostDiskFull, OutOfMemory
from toolkit.events import Progress, Service, Step
from toolkit.localhost import without_secrets
from toolkit.optimize.extra import require_extra
from toolkit.units import memory_text

_POLL_S = 0.2
_SIGKILL = 9
_KEPT_LOGS = 50
_STARTED = re.compile(r"Running pass (\w+):(\w+)")
_LAYER = re.compile(r"Reading layer (\d+)")
_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt): .+")
_NO_MEMORY = re.compile(
    r"^MemoryError|std::bad_alloc|DefaultCPUAllocator: can't allocate|Cannot allocate memory|bad allocation"
    r"|ArrayMemoryError|OutOfMemoryError",
    re.MULTILINE,
)
_NO_SPACE = re.compile(r"No space left on device|Errno 28\b|code: 28\b|disk full", re.IGNORECASE)
# With less a log ends before it tells why.
_LEAST_BYTES = 1 << 16
_LESS_MEMORY = "close other programs, add swap, or take a smaller model; rtn recipes need the least"


@dataclass(frozen=True)
class OliveRun:
    """A finished workflow: its seconds, the most memory that its processes held together, and the log of its output."""

    seconds: float
    peak_rss_bytes: int
    log: Path


def run_workflow(workflow: dict[str, Any], work: Path, *, kv_cache: dict[str, Any] | None = None) -> Service[OliveRun]:
    """Have Olive execute `workflow`, with all temporary files below the folder `work`.

    `kv_cache` are the arguments of `quantize_kv_cache`, which then runs on Olive's output.

    Raises MissingExtra, HostDiskFull, OutOfMemory and BuildError. Leaving the generator early ends the child; `work` is
    the caller's to remove.
    """
    require_extra()
    config = work / "build.json"
    config.write_text(json.dumps({"workflow": workflow, "kv_cache": kv_cache}, indent=2), encoding="utf-8")
    log = _new_log()
    began = time.monotonic()
    with _child(config, work, log) as process:
        peak = yield from _watch(
            process, workflow["passes"], log, steps=len(workflow["passes"]) + (kv_cache is not None)
        )
    returncode = process.returncode
    run = OliveRun(time.monotonic() - began, peak, log)
    if returncode != 0:
        raise _failure(returncode, run)
    return run


def _new_log() -> Path:
    folder = data_dir() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("olive-*.log"))[: -_KEPT_LOGS + 1]:
        old.unlink(missing_ok=True)
    return folder / f"olive-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}-{time.monotonic_ns() % 10**6:06d}.log"


def child_environment(work: Path) -> dict[str, str]:
    """The environment of the child: no telemetry, no network, no secrets, no litter outside `work`."""
    paths = [str(import_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return without_secrets() | {
        "OLIVE_DISABLE_TELEMETRY": "1",
        # Olive 0.13 sends its heartbeat before it looks at the variable above, and waits 12 s for the answer
        # when there is no network. In a CI pipeline, as it recognizes one, it sends none.
        "CI": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(work / "hf"),
        "TMPDIR": str(_ensure(work / "tmp")),
        "OLIVE_TELEMETRY_CACHE_DIR": str(work / "tmp"),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        # Without these GPTQ's sums depend on how memory is aligned, and no two builds are the same.
        "MKL_CBWR": "AUTO,STRICT",
        "MKL_DYNAMIC": "FALSE",
        "OMP_DYNAMIC": "FALSE",
        "TQDM_DISABLE": "1",
    }


def _ensure(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _child(config: Path, work: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "toolkit.optimize.child", str(config)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=work,
            env=child_environment(work),
            # Ctrl-C reaches us alone; we end the child ourselves, with everything it started.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    import psutil

    if process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for descendant in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    descendant.kill()
        process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _watch(
    process: subprocess.Popen[bytes], passes: dict[str, dict[str, Any]], log: Path, *, steps: int
) -> Service[int]:
    """Report progress from the log until the child ends; returns the peak memory in bytes."""
    peak = 0
    started = 0
    with log.open("rb") as reader:
        while True:
            ended = process.poll() is not None
            peak = max(peak, _memory_bytes(process.pid))
            for line in reader:
                text = line.decode("utf-8", "replace")
                if match := _STARTED.search(text):
                    started += 1
                    yield Step(f"{match[1]} ({passes.get(match[1], {}).get('type', match[2])})")
                elif match := _LAYER.search(text):
                    yield Progress("layers", int(match[1]) + 1, None)
            yield Progress("olive", started, steps)
            if ended:
                return peak
            time.sleep(_POLL_S)


def _memory_bytes(pid: int) -> int:
    import psutil

    total = 0
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_info().rss
    return total


def _failure(returncode: int, run: OliveRun) -> BuildError:
    text = run.log.read_text(encoding="utf-8", errors="replace")
    if returncode in (-_SIGKILL, 128 + _SIGKILL) or _NO_MEMORY.search(text):
        how = "was killed" if returncode in (-_SIGKILL, 128 + _SIGKILL) else "ran out of memory"
        message = f"the build {how} holding {memory_text(run.peak_rss_bytes)} of memory ({shown(run.log)})"
        return OutOfMemory(message, _LESS_MEMORY)
    if _NO_SPACE.search(text):
        message = f"the disk became full during the build ({shown(run.log)})"
        return HostDiskFull(message, "free some space, or set EDGEPHI_CACHE_DIR to another disk")
    if shutil.disk_usage(run.log.parent).free < _LEAST_BYTES:
        message = f"the disk of the build's log became full ({shown(run.log)})"
        return HostDiskFull(message, "free some space, or set EDGEPHI_DATA_DIR to another disk")
    return BuildError(f"Olive failed: {last_error(text)}", f"its log is {shown(run.log)}")


def last_error(log: str) -> str:
    """The line of a log that says most about a failure: the last exception, or else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or ["it said nothing"])[-1]
