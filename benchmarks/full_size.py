"""The whole loop on a full-size shape: build, push over loopback SSH, measure.

    edgephi model synth phi-3-mini-4k -o synth-mini
    python benchmarks/full_size.py synth-mini > benchmarks/RESULTS-full-size.md

Speed and memory don't depend on the weights' values, so random ones do. Needs about 20 GB of disk, 10 GB of memory, and
an otherwise idle machine. Prints Markdown; talk goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from toolkit.cli import render
from toolkit.cli.tables import as_markdown
from toolkit.config import cache_dir
from toolkit.demo import loopback_target
from toolkit.models import open_model
from toolkit.pipeline import Options, run
from toolkit.plan import plan
from toolkit.profiles import load_profile
from toolkit.recipes import load_recipe
from toolkit.report import Report, metrics
from toolkit.transport.loopback import start_loopback
from toolkit.workloads import load_workload

RECIPES = ("int4-rtn-b32", "int4-rtn-b128")


def predictions(model: Path, reports: list[Report]) -> str:
    """Predicted beside measured: bundle size, and peak memory with the workload's context."""
    shape, profile = open_model(model).shape, load_profile("local")
    rows = []
    for report in reports:
        fit = plan(shape, load_recipe(report.recipe), profile, report.workload.tokens)
        measured = metrics(report)["rss_peak_bytes"].median
        rows.append(
            [
                report.recipe,
                render.size(fit.bundle_bytes),
                render.size(report.bundle_bytes),
                f"{fit.bundle_bytes / report.bundle_bytes - 1:+.1%}",
                render.size(fit.needed_bytes),
                render.size(measured),
                f"{fit.needed_bytes / measured - 1:+.1%}",
            ]
        )
    columns = ["recipe", "size, planned", "size", "error", "peak memory, planned", "peak RSS", "error"]
    return render.markdown_table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--workload", default="pp512-tg128")
    parser.add_argument("--recipe", action="append", help=f"default: {', '.join(RECIPES)}")
    args = parser.parse_args()
    root = cache_dir() / "full-size"
    root.mkdir(parents=True, exist_ok=True)
    options = Options(load_workload(args.workload))
    with start_loopback(root) as server:
        target = loopback_target("loopback", server, root)
        rows = render.follow(run(str(args.model), [target], args.recipe or RECIPES, options))
    reports = [row.report for row in rows if row.report]
    sys.stdout.write(f"{as_markdown(reports)}\n{predictions(args.model, reports)}\n")
    for row in rows:
        if row.error:
            raise row.error


if __name__ == "__main__":
    main()
