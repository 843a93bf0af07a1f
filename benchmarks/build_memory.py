"""Full-size builds under a real memory limit, beside the same builds without one: `make test-memory`.

    python benchmarks/build_memory.py [--models DIR] [--only phi-3-mini-4k]

Needs root, cgroup v1 or v2, 24 GiB of memory and 60 GB of disk (EDGEPHI_CACHE_DIR says where); twenty minutes to an
hour on two cores. Exits with 1 when a limited build fails or doesn't equal the unlimited one bit for bit. Progress goes
to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle import Bundle, open_bundle
from toolkit.catalog.preset import PRESETS
from toolkit.cli import markdown, render
from toolkit.config import cache_dir
from toolkit.optimize.synth import synthesize

GIB = 1 << 30
LIMITS = {"phi-3-mini-4k": 8 * GIB, "phi-3-medium-4k": 16 * GIB}
RECIPE = "int4-rtn-b32"
# Model Builder alone needs more than 24 GiB for the whole of mini; both can be timed with half of its layers.
STOCK_MODEL, STOCK_LAYERS = "phi-3-mini-4k", 16
_SIGKILL = 9
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Build:
    """One build: its name, its time, the most memory charged to it, with and without page cache, and its bundle."""

    name: str
    seconds: float
    peak_bytes: int
    anonymous_bytes: int
    bundle: Bundle | None


@contextlib.contextmanager
def group(limit_bytes: int | None) -> Iterator[Path]:
    """A memory cgroup, of version 1 where it is mounted, else 2."""
    v1 = (CGROUPS / "memory").is_dir()
    folder = (CGROUPS / "memory" if v1 else CGROUPS) / f"edgephi-{os.getpid()}"
    folder.mkdir()
    try:
        if limit_bytes is not None:
            (folder / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit_bytes))
        yield folder
    finally:
        for _ in range(100):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


def peak_bytes(folder: Path) -> int:
    names = ("memory.max_usage_in_bytes", "memory.peak")
    return next(int((folder / name).read_text()) for name in names if (folder / name).is_file())


def anonymous_bytes(folder: Path) -> int:
    """The memory that can't be dropped and read again: everything but the page cache."""
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int(stat.get("total_rss", stat.get("anon", 0)))


def run(
    name: str, argv: list[str], limit_bytes: int | None, out: Path | None = None, *, may_be_killed: bool = False
) -> Build:
    """Run a build in a group of its own.

    Raises CalledProcessError when it fails. With `may_be_killed` a kill is a result too, and the build's name says so.
    """
    sys.stderr.write(f"> {name}\n")
    with group(limit_bytes) as folder:
        began = time.monotonic()
        process = subprocess.Popen(
            argv, preexec_fn=lambda: (folder / "cgroup.procs").write_text(str(os.getpid())) and None, stdout=sys.stderr
        )
        anonymous = 0
        while process.poll() is None:
            anonymous = max(anonymous, anonymous_bytes(folder))
            time.sleep(0.2)
        seconds, peak = time.monotonic() - began, peak_bytes(folder)
    if may_be_killed and process.returncode == -_SIGKILL:
        return Build(f"{name}: killed, out of memory", seconds, peak, anonymous, None)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return Build(name, seconds, peak, anonymous, open_bundle(out) if out else None)


def optimize(model: Path, work: Path, limit_bytes: int | None) -> Build:
    """Run `edgephi optimize` with an empty store."""
    limit = f"{limit_bytes // GIB} GiB" if limit_bytes else "no limit"
    out = work / (f"limited-{model.name}" if limit_bytes else f"unlimited-{model.name}")
    shutil.rmtree(out, ignore_errors=True)
    os.environ["EDGEPHI_CACHE_DIR"] = str(work / "cache")
    shutil.rmtree(work / "cache" / "builds", ignore_errors=True)
    shutil.rmtree(work / "cache" / "bundles", ignore_errors=True)
    # --force isn't given: the preflight has to know that this fits.
    argv = [sys.executable, "-m", "toolkit", "optimize", str(model), "--recipe", RECIPE, "--profile", "local"]
    return run(f"{model.name}, edgephi, {limit}", [*argv, "-o", str(out)], limit_bytes, out)


def stock(model: Path, work: Path) -> Build:
    """Build the same precision with Model Builder alone, as is usual."""
    out = work / "stock"
    shutil.rmtree(out, ignore_errors=True)
    argv = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(out), "-p", "int4"]
    argv += ["-e", "cpu", "-c", str(work / "stock-cache"), "--extra_options", "hf_remote=false"]
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The limit is a GiB less than the machine's memory: the kernel then ends this build, and nothing else.
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - GIB
    built = run(f"{model.name}, Model Builder alone, {most / GIB:.1f} GiB", argv, most, may_be_killed=True)
    shutil.rmtree(out, ignore_errors=True)
    return built


def same(one: Bundle, other: Bundle) -> bool:
    return one.manifest.artifacts == other.manifest.artifacts


def synthesized(models: Path, name: str, layers: int | None = None) -> Path:
    """A model of that shape, made unless it is there; `layers` is the number of its first layers, None for all."""
    folder = models / (name if layers is None else f"{name}-{layers}-layers")
    if not folder.is_dir():
        render.follow(synthesize(PRESETS[name], folder, layers=layers))
    return folder


def rows(models: Path, names: list[str]) -> Iterator[tuple[Build, str]]:
    work = cache_dir() / "memory-test"
    work.mkdir(parents=True, exist_ok=True)
    for name in names:
        model = synthesized(models, name)
        limited = optimize(model, work, LIMITS[name])
        yield limited, ""
        free = optimize(model, work, None)
        if limited.bundle is None or free.bundle is None or not same(limited.bundle, free.bundle):
            raise SystemExit(f"{name}: the limited build isn't the unlimited one")
        yield free, "yes"
        if name == STOCK_MODEL:
            yield stock(model, work), ""
            half = synthesized(models, name, STOCK_LAYERS)
            yield optimize(half, work, None), ""
            yield stock(half, work), ""
        for out in work.glob("*limited-*"):
            shutil.rmtree(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder with synthesized models; made in the cache when absent")
    parser.add_argument("--only", choices=LIMITS, action="append", help="leave the other models out")
    options = parser.parse_args()
    models = options.models or cache_dir() / "results"
    models.mkdir(parents=True, exist_ok=True)
    table = [
        [
            build.name,
            f"{build.seconds:.0f}",
            render.memory(build.anonymous_bytes),
            render.memory(build.peak_bytes),
            equal,
        ]
        for build, equal in rows(models, options.only or list(LIMITS))
    ]
    columns = ["build", "seconds", "peak without page cache", "peak with page cache", "bits equal to the limited one"]
    print("# Builds under a memory limit\n\nOutput of `make test-memory`.\n")
    print(f"{RECIPE}, random weights; edgephi's time includes hashing the model and the load check in the runtime:\n")
    print(markdown.table(columns, table))


if __name__ == "__main__":
    main()
