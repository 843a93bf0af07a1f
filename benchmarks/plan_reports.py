"""Measure the time that kept reports cost `edgephi plan`, `bench` and `run`, and print it as Markdown.

    make plan-reports                      # writes PLAN.md
    python benchmarks/plan_reports.py      # the same, to stdout

The reports lie in a temporary data folder. Figures are processor time, so a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from toolkit.catalog import ModelShape, Target, Workload, load_profile, load_recipe
from toolkit.catalog.preset import PRESETS
from toolkit.catalog.settings import RuntimeSettings
from toolkit.catalog.shape import parse_shape
from toolkit.catalog.target import save_target
from toolkit.cli import markdown
from toolkit.config import config_dir, data_dir
from toolkit.metrics import Report
from toolkit.metrics.footprint import footprint
from toolkit.metrics.kept_reports import find_report
from toolkit.metrics.report import Run, Sample, report_path, reports_dir
from toolkit.metrics.speed import SpeedBook, predict

MODEL, PROFILE, TARGET, MACHINE = "phi-3-mini-4k", "raspberry-pi-5-8gb", "pi5", "a" * 16
# Names that begin with the target's name, hold it, or end in it.
OTHERS = ("pi5-kitchen", "lab-pi5-2", "my-pi5", "nas")
AGENT, RUNTIME = "0" * 64, ["onnxruntime-genai==0.14.1"]
RECIPES = ("int4-rtn-b32", "int4-rtn-b128", "fp32")
WORKLOAD = Workload(
    name="pp512-tg128", description="512 in, 128 out", prompt_tokens=512, generate_tokens=128, repetitions=3, runs=5
)
SHAPE = parse_shape(PRESETS[MODEL].config(), MODEL)
# A sixteenth of each width: the speed of such a model says nothing about Phi-3-mini.
SMALL = SHAPE.model_copy(update={"hidden": 192, "intermediate": 512, "layers": 4})
FIRST_S = 1_767_225_600  # 2026-01-01
SEED = 1907


@dataclass(frozen=True)
class Folder:
    """Kept reports: their number, the number of the target's own, and if these bear on the model that is planned."""

    name: str
    count: int
    own: int
    bears: bool = True


FOLDERS = (
    Folder("none", 0, 0),
    Folder("20 of the target", 20, 20),
    Folder("10,000, half of them of four other targets", 10_000, 5_000),
    Folder("10,000 of the target, all of a small model", 10_000, 10_000, bears=False),
)


def reports(folder: Folder) -> Iterator[Report]:
    """The reports of a folder, the oldest first: 15 samples of 128 tokens each."""
    source = random.Random(SEED)
    bases = [_base(recipe, source, SHAPE if folder.bears else SMALL) for recipe in RECIPES]
    for index in range(folder.count):
        base = bases[index % len(bases)]
        own = index * folder.own // folder.count != (index + 1) * folder.own // folder.count
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(FIRST_S + 600 * index))
        changes = {"created_utc": created, "target": TARGET if own else OTHERS[index // 2 % len(OTHERS)]}
        yield base.model_copy(update=changes)


def _base(recipe: str, source: random.Random, shape: ModelShape) -> Report:
    found = footprint(shape, load_recipe(recipe), "cpu")
    lengths = WORKLOAD.prompt_tokens, WORKLOAD.generate_tokens, WORKLOAD.tokens
    return Report(
        created_utc="",
        edgephi_version="0.1.0",
        agent_sha256=AGENT,
        target=TARGET,
        target_key=MACHINE,
        profile=PROFILE,
        bundle_id=f"{RECIPES.index(recipe)}" * 64,
        bundle_name=recipe,
        model=MODEL,
        recipe=recipe,
        bundle_bytes=found.bundle_bytes,
        context_tokens=4096,
        workload=WORKLOAD,
        settings=RuntimeSettings(threads=4),
        runtime=RUNTIME,
        environment={"board": "Raspberry Pi 5", "cores": 4, "arch": "aarch64"},
        predicted=predict(found, SpeedBook(load_profile(PROFILE), None).speed(found), *lengths, 0),
        runs=[_run(source) for _ in range(WORKLOAD.runs)],
    )


def _run(source: random.Random) -> Run:
    return Run(
        load_ns=9_000_000_000,
        load_peak_bytes=3_000_000_000,
        rss_peak_bytes=source.randint(3_000_000_000, 3_100_000_000),
        pss_bytes=2_900_000_000,
        mem_available_start_bytes=7_000_000_000,
        mem_available_min_bytes=4_000_000_000,
        temp_c_start=50.0,
        temp_c_max=65.0,
        throttled=False,
        cold=False,
        samples=[_sample(source) for _ in range(WORKLOAD.repetitions)],
    )


def _sample(source: random.Random) -> Sample:
    stamps = [source.randint(18_000_000_000, 22_000_000_000)]
    for _ in range(WORKLOAD.generate_tokens - 1):
        stamps.append(stamps[-1] + source.randint(180_000_000, 220_000_000))
    return Sample(prompt_tokens=WORKLOAD.prompt_tokens, token_ns=stamps, tokens_sha256="0" * 64)


def write(folder: Folder) -> None:
    """Keep the reports of a folder, each as old as it says."""
    shutil.rmtree(data_dir(), ignore_errors=True)
    for index, report in enumerate(reports(folder)):
        path = report_path(report)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report.model_dump_json(indent=1), encoding="utf-8")
        os.utime(path, (FIRST_S + 600 * index,) * 2)


def plan_s() -> float:
    """Processor seconds of one `edgephi plan … --all`, the whole process."""
    argv = [sys.executable, "-m", "toolkit", "plan", MODEL, "--target", TARGET, "--all"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def kept_s() -> float:
    """Processor seconds of finding the newest report that `run` reuses instead of measuring."""
    spent, found = _find(AGENT)
    assert found or not reports_dir().is_dir()
    return spent


def miss_s() -> float:
    """Processor seconds of finding that no such report is kept, as after an update of edgephi."""
    spent, found = _find("1" * 64)
    assert found is None
    return spent


def _find(agent: str) -> tuple[float, Report | None]:
    started = time.process_time()
    wanted = {"target_key": MACHINE, "bundle_id": "0" * 64, "workload": WORKLOAD, "runtime": RUNTIME}
    found = find_report(target=TARGET, agent_sha256=agent, **wanted)
    return time.process_time() - started, found


def speed_s() -> float:
    """Processor seconds of the look-up in earlier reports by which `bench` and `run` predict before they measure."""
    found = footprint(SHAPE, load_recipe(RECIPES[0]), "cpu")
    profile = load_profile(PROFILE)
    started = time.process_time()
    SpeedBook(profile, TARGET, MACHINE).speed(found, without="0" * 64)
    return time.process_time() - started


COLUMNS: dict[str, Callable[[], float]] = {
    f"`plan {MODEL} --all`, s": plan_s,
    "a report that `run` reuses, s": kept_s,
    "… and there is none, s": miss_s,
    "speed for `bench` and `run`, s": speed_s,
}


def rows(folder: Folder, rounds: int) -> Iterator[list[str]]:
    """Two rows: without an index, and with the one that the command before left."""
    times: dict[str, list[list[float]]] = {"without an index": [], "with it": []}
    for _ in range(rounds):
        for taken in times.values():
            taken.append([])
        for measure in COLUMNS.values():
            shutil.rmtree(data_dir() / "report-index", ignore_errors=True)
            for taken in times.values():
                taken[-1].append(measure())
    for name, taken in times.items():
        medians = [statistics.median(column) for column in zip(*taken, strict=True)]
        yield [folder.name, name, *(f"{seconds:.3f}" for seconds in medians)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="medians are of this many")
    parser.add_argument("--folders", type=int, default=len(FOLDERS), metavar="N", help="the first N folders only")
    options = parser.parse_args()
    found: list[list[str]] = []
    with tempfile.TemporaryDirectory() as root:
        for kind in ("CONFIG", "CACHE", "DATA"):
            os.environ[f"EDGEPHI_{kind}_DIR"] = str(Path(root) / kind.lower())
        save_target(Target(name=TARGET, host="127.0.0.1", profile=PROFILE), config_dir() / "targets")
        plan_s()  # writes the byte code and warms the page cache
        for folder in islice(FOLDERS, options.folders):
            write(folder)
            found += rows(folder, options.rounds)
    print("# What kept reports cost\n")
    print("Output of `make plan-reports`; edit `benchmarks/plan_reports.py`, not this file.\n")
    print(f"Processor seconds, medians of {options.rounds}; `plan` is its whole process. Each report has 15 samples of")
    print("128 tokens. The index is what a command leaves behind of the reports that it had to open.\n")
    print(markdown.table(["reports kept", "", *COLUMNS], found))


if __name__ == "__main__":
    main()
