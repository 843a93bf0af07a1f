"""The time of `edgephi --help` beside a bare Python, in one interleaved run: `python benchmarks/startup.py`."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import click'": [sys.executable, "-c", "import click"],
    "edgephi --help": [sys.executable, "-m", "toolkit", "--help"],
    "edgephi profiles list": [sys.executable, "-m", "toolkit", "profiles", "list"],
}


def seconds(argv: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def section(rounds: int) -> str:
    """The table as Markdown."""
    for argv in COMMANDS.values():
        seconds(argv)  # writes the byte code and warms the page cache
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, argv in COMMANDS.items():
            times[name].append(seconds(argv))
    base = statistics.median(times["python -c pass"])
    lines = ["| command | median ms | p95 ms | × bare Python |", "|---|---|---|---|"]
    for name, values in times.items():
        median, p95 = statistics.median(values), statistics.quantiles(values, n=20)[-1]
        lines.append(f"| `{name}` | {median * 1e3:.0f} | {p95 * 1e3:.0f} | {median / base:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    print(section(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
