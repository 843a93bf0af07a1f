"""Measure everything that RESULTS.md shows, and print it as Markdown.

    make results                                # the full-size shape is synthesized into the cache first
    python benchmarks/results.py --model DIR    # a full-size Phi-3-mini folder that is there already

Needs about 20 GB of disk, 12 GB of memory, half an hour, and an otherwise idle machine. Talk goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import startup

from toolkit.build import optimize
from toolkit.cli import render
from toolkit.cli.tables import as_markdown
from toolkit.config import cache_dir
from toolkit.demo import demo, loopback_target
from toolkit.deploy import check_here
from toolkit.evaluate import evaluate
from toolkit.models import open_model
from toolkit.optimizer.synth import synthesize
from toolkit.pipeline import Options, Row, run
from toolkit.plan import plan
from toolkit.presets import PRESETS
from toolkit.profiles import load_profile
from toolkit.recipes import list_recipes, load_recipe
from toolkit.report import Report, metrics
from toolkit.transport.loopback import start_loopback
from toolkit.workloads import load_workload

FULL_SIZE = "phi-3-mini-4k"
FULL_SIZE_RECIPES = ("int4-rtn-b32", "int4-rtn-b128")

# Measured by hand before edgephi existed, on a machine of the same kind (2 cores, AMD EPYC with AVX512-VNNI), quiet,
# three interleaved rounds, pp512 + 64 tokens at depth 512. Kept as the figures to stand beside.
BEFORE = """\
| engine | prefill tok/s | decode tok/s at depth 512 | peak RSS | cold load s |
|---|---|---|---|---|
| onnxruntime-genai 0.18, int4 block 32, 2.72 GB | 26.6–31.1 | 8.6–10.0 | 3.86 GB | 8–11 |
| onnxruntime-genai 0.18, int4 block 128 pruned, 2.03 GB | 41.7–46.2 | 10.4–13.3 | 2.80 GB | 4.5–6 |
| llama.cpp Q4_0, 2.18 GB | 32.9–35.0 | 5.7–6.3 | 4.27–4.56 GB | < 2 warm |
| openvino-genai 2026.4, int4 group 128, 2.07 GB | 58.1–58.8 | 8.1–8.4 | 4.30 GB | 3.1 + 15 first prompt |"""


def work_folder() -> Path:
    folder = cache_dir() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def synthesized() -> Path:
    """The full-size shape with random weights, written once."""
    folder = work_folder() / FULL_SIZE
    if not folder.is_dir():
        render.follow(synthesize(PRESETS[FULL_SIZE], folder, layers=None))
    return folder


def full_size(model: Path) -> list[Row]:
    """The whole loop on a full-size shape, over loopback SSH."""
    root = work_folder()
    with start_loopback(root) as server:
        target = loopback_target("loopback", server, root)
        options = Options(load_workload("pp512-tg128"))
        return render.follow(run(str(model), [target], FULL_SIZE_RECIPES, options))


def predictions(model: Path, reports: Sequence[Report]) -> str:
    """Predicted beside measured: bundle size, and peak memory with the workload's context."""
    profile = load_profile("local")
    shape = open_model(model).shape
    table = []
    for report in reports:
        fit = plan(shape, load_recipe(report.recipe), profile, report.workload.tokens)
        measured = metrics(report)["rss_peak_bytes"].median
        table.append(
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
    columns = ["recipe", "size planned", "size", "error", "peak memory planned", "peak RSS", "error"]
    return render.markdown_table(columns, table)


def quality() -> str:
    """Every shipped recipe on phi3-nano, like for like: the same weights, text and windows."""
    profile = load_profile("local")
    bundles = [render.follow(optimize("phi3-nano", recipe, profile, check=check_here)) for recipe in list_recipes()]
    reference = next(bundle for bundle in bundles if bundle.manifest.recipe["algorithm"] == "none")
    rows = []
    for bundle in bundles:
        found = render.follow(evaluate(bundle, reference, None, tokens=32_768, window_tokens=512))
        rows.append(
            [
                bundle.manifest.recipe["name"],
                render.size(bundle.manifest.size_bytes),
                f"{8 * bundle.manifest.size_bytes / bundle.manifest.model.parameters:.1f}",
                f"{found.ppl:.2f} ± {found.ppl_error:.2f}",
                f"{found.ppl_increase:+.2%}",
                f"{found.kld_mean:.5f} ± {found.kld_mean_error:.5f}",
                f"{found.kld_p99:.4f}",
                f"{found.top1:.1%}",
            ]
        )
    columns = ["recipe", "size", "bits a weight", "ppl", "increase", "KLD mean", "KLD p99", "top-1 agreement"]
    return render.markdown_table(columns, rows)


def reports_of(rows: Sequence[Row]) -> list[Report]:
    for row in rows:
        if row.error:
            raise row.error
    return [row.report for row in rows if row.report]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help=f"a {FULL_SIZE} folder; synthesized when absent")
    model = parser.parse_args().model or synthesized()
    large = reports_of(full_size(model))
    small = reports_of(render.follow(demo()))
    sys.stdout.write(
        f"""\
# Results

Output of `make results`; edit `benchmarks/results.py`, not this file.

## Full-size Phi-3-mini (3.8 B, random weights), built, pushed over SSH and measured on this machine

{as_markdown(large)}
What the fit plan had predicted for the same workload:

{predictions(model, large)}

Beside it, what was measured by hand earlier on a machine of the same kind:

{BEFORE}

## phi3-nano, the demo's table

{as_markdown(small)}
## Recipes, like for like, on phi3-nano

32,768 tokens of held-out text in windows of 512, on this machine; ± is one standard error over windows, and the rows
share their windows, so differences between rows are far surer than that. `edgephi eval` gives the same for any bundle.

{quality()}

## Start-up

Interleaved rounds of `python benchmarks/startup.py`:

{startup.section(20)}
"""
    )


if __name__ == "__main__":
    main()
