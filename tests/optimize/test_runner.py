"""toolkit.optimize.runner: the child that runs Olive, and every way it can end."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.builds import follow
from tests.support.paths import REPO
from tests.support.servers import needs_root, small_disk
from toolkit.catalog import load_recipe
from toolkit.catalog.model import shipped_model
from toolkit.errors import BuildError, HostDiskFull, MissingExtra, OutOfMemory
from toolkit.events import Event, Progress, Step
from toolkit.optimize import require_extra, tool_versions
from toolkit.optimize.runner import OliveRun, _failure, child_environment, last_error, run_workflow
from toolkit.optimize.workflow import render_workflow

CGROUPS = Path("/sys/fs/cgroup/memory")


def workflow(work: Path, recipe: str = "int4-rtn-b32") -> dict[str, Any]:
    model = shipped_model("phi3-nano")
    assert model is not None
    return render_workflow(load_recipe(recipe), model.folder, "cpu", None, work / "output", work / "cache")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "olive"
    folder.mkdir()
    return folder


def test_progress_log_and_peak_memory_of_a_real_run(work: Path) -> None:
    events: list[Event] = []
    run = follow(run_workflow(workflow(work), work), events)
    assert [event.text for event in events if isinstance(event, Step)] == [
        "quantize (Rtn)",
        "export (ModelBuilder)",
    ]
    progress = [event for event in events if isinstance(event, Progress) and event.label == "olive"]
    assert (progress[-1].done, progress[-1].total) == (2, 2)
    assert 100_000_000 < run.peak_rss_bytes < 3_000_000_000
    assert "Running workflow" in run.log.read_text()
    assert (work / "output" / "genai_config.json").is_file()


def test_failed_pass_is_reported_although_olive_ends_well(work: Path) -> None:
    broken = workflow(work)
    broken["passes"]["quantize"]["group_size"] = 7
    with pytest.raises(BuildError) as caught:
        follow(run_workflow(broken, work))
    assert caught.value.message.startswith("Olive failed: ")
    assert caught.value.hint is not None
    log = Path(caught.value.hint.removeprefix("its log is "))
    assert log.suffix == ".log" and caught.value.message.removeprefix("Olive failed: ") in log.read_text()


@needs_root
def test_disk_that_becomes_full_during_the_work(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "small", "8m") as disk,
        pytest.raises(HostDiskFull, match="became full during the build"),
    ):
        follow(run_workflow(workflow(disk), disk))


@pytest.fixture
def memory_limit() -> Iterator[Callable[[int], Callable[[], None]]]:
    """Give a maker of `preexec_fn`s, with which the kernel kills a process beyond that many bytes."""
    group = CGROUPS / f"edgephi-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("limiting memory needs root and cgroup v1")

    def limited(n_bytes: int) -> Callable[[], None]:
        (group / "memory.limit_in_bytes").write_text(str(n_bytes))
        return lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None

    yield limited
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)


def test_a_memory_limit_is_known_before_the_work(memory_limit: Callable[[int], Callable[[], None]]) -> None:
    root = REPO
    run = subprocess.run(
        [sys.executable, "-m", "toolkit", "optimize", "phi3-nano", "-p", "local", "--no-check"],
        env=os.environ | {"PYTHONPATH": str(root)},
        preexec_fn=memory_limit(160_000_000),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 3, run.stderr
    assert "MiB are free under its memory limit" in run.stderr
    assert "> build" not in run.stderr


def test_out_of_memory_kill_is_reported_as_exactly_that(
    memory_limit: Callable[[int], Callable[[], None]], tmp_path: Path
) -> None:
    root = REPO
    command = [sys.executable, "-m", "toolkit", "optimize", "phi3-nano", "-p", "local", "--no-check", "--force"]
    run = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(root)},
        preexec_fn=memory_limit(160_000_000),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 5, run.stderr
    assert re.search(r"the build was killed holding 1?[0-9.]+ MiB of memory", run.stderr)
    assert "smaller model" in run.stderr
    assert [path.suffix for path in (tmp_path / "cache" / "builds").iterdir()] == [".lock"]


def _words(process: psutil.Process) -> list[str]:
    """The command line of a process; empty for one that has ended, as another test's may have."""
    try:
        return process.cmdline()
    except psutil.ZombieProcess:
        return []


def test_leaving_the_generator_ends_the_child(work: Path) -> None:
    service = run_workflow(workflow(work), work)
    next(event for event in service if isinstance(event, Step))
    (child,) = (process for process in psutil.Process().children() if "toolkit.optimize.child" in _words(process))
    service.close()
    assert not child.is_running()


@pytest.mark.parametrize(
    ("returncode", "log", "kind"),
    [
        (-9, "Reading layer 3\n", OutOfMemory),
        (137, "", OutOfMemory),
        (1, "Traceback\nMemoryError\n", OutOfMemory),
        (3, "terminate called after throwing an instance of 'std::bad_alloc'\n", OutOfMemory),
        (
            3,
            "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: "
            "can't allocate memory: you tried to allocate 402653184 bytes.\n",
            OutOfMemory,
        ),
        (3, "OSError: [Errno 28] No space left on device: '/x'\n", HostDiskFull),
        (
            3,
            'SafetensorError: I/O error: Os { code: 28, message: "No space left on device" }\n',
            HostDiskFull,
        ),
        (3, "ValueError: in_features must be divisible\n", BuildError),
    ],
)
def test_kind_of_failure_is_read_from_exit_and_log(
    tmp_path: Path, returncode: int, log: str, kind: type[BuildError]
) -> None:
    path = tmp_path / "olive.log"
    path.write_text(log)
    error = _failure(returncode, OliveRun(1.0, 6_100_000_000, path))
    assert type(error) is kind
    assert error.hint
    if kind is OutOfMemory:
        assert "5.68 GiB" in error.message


def test_last_error_is_the_exception_that_ended_it() -> None:
    log = "a.b.FirstError: one\nTraceback (most recent call last):\nValueError: two\n[INFO] goodbye\n"
    assert last_error(log) == "ValueError: two"
    assert last_error("nothing of note\n\n") == "nothing of note"
    assert last_error("") == "it said nothing"


def test_child_is_offline_and_silent(tmp_path: Path) -> None:
    environment = child_environment(tmp_path)
    for name in ("OLIVE_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        assert environment[name] == "1"
    assert Path(environment["HF_HOME"]).is_relative_to(tmp_path)
    assert Path(environment["TMPDIR"]).is_relative_to(tmp_path)


def test_missing_extra_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "olive" else find(name, *args))
    with pytest.raises(MissingExtra) as caught:
        require_extra()
    assert caught.value.message == "optimizing needs the 'optimize' extra: olive-ai isn't installed"
    assert caught.value.hint == "pip install 'edgephi[optimize]' -c constraints.txt"
    assert caught.value.exit_code == 4


def test_tools_are_known_without_importing_them() -> None:
    code = (
        "import sys; from toolkit.optimize import require_extra, tool_versions; require_extra(); "
        "tool_versions(); print([name for name in ('olive', 'torch', 'transformers') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert tool_versions()["onnxruntime-genai"]
