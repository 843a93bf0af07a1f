"""Measure everything that RESULTS.md shows, and print it as Markdown.

    make results                                # the full-size shape is synthesized into the cache first
    python benchmarks/results.py --model DIR    # a full-size Phi-3-mini folder that is there already

Needs about 20 GB of disk, 11 GiB of memory, an hour and a half, and an otherwise idle machine. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import startup

from toolkit.bench import read_eval_text, target_key
from toolkit.bench.evaluate import evaluate
from toolkit.bench.measure import measure
from toolkit.bundle import find_bundle
from toolkit.catalog import Target
from toolkit.catalog.preset import PRESETS
from toolkit.catalog.recipe import impossible, list_recipes
from toolkit.catalog.workload import load_workload
from toolkit.cli import markdown, render
from toolkit.cli.tables import as_markdown
from toolkit.config import cache_dir
from toolkit.deploy import prepare
from toolkit.device import connect
from toolkit.emulate import start_loopback
from toolkit.jobs import LoopOptions
from toolkit.jobs.demo import demo, loopback_target
from toolkit.jobs.run import LoopRow, run
from toolkit.metrics import Report, metrics
from toolkit.optimize.synth import synthesize

FULL_SIZE = "phi-3-mini-4k"
FULL_SIZE_RECIPES = (
    "int4-rtn-b32",
    "int4-rtn-b128",
    "int4-rtn-b128-pruned",
    "int4-rtn-b128-kv8",
    "int4-rtn-b128-int2",
)

# The recipes that differ only in the algorithm.
EQUAL_BITS = {
    "blocks of 32": "int4-{}-b32",
    "blocks of 32, 8-bit head": "int4-{}-b32-head8",
    "blocks of 32, after QuaRot": "int4-quarot-{}-b32",
    "blocks of 128, 4-bit embedding": "int4-{}-b128",
    "blocks of 128, 4-bit embedding, an eighth in 2 bits": "int4-{}-b128-int2",
}

# Measured by hand before edgephi existed, on 2 cores of an AMD EPYC with AVX512-VNNI, quiet, three interleaved
# rounds, pp512 + 64 tokens at depth 512. They are kept to compare with.
BEFORE = """\
| engine | prefill tok/s | decode tok/s at depth 512 | peak RSS | cold load s |
|---|---|---|---|---|
| onnxruntime-genai 0.18, int4 block 32, 2.72 GB | 26.6–31.1 | 8.6–10.0 | 3.59 GiB | 8–11 |
| onnxruntime-genai 0.18, int4 block 128 pruned, 2.03 GB | 41.7–46.2 | 10.4–13.3 | 2.61 GiB | 4.5–6 |
| llama.cpp Q4_0, 2.18 GB | 32.9–35.0 | 5.7–6.3 | 3.98–4.25 GiB | < 2 warm |
| openvino-genai 2026.4, int4 group 128, 2.07 GB | 58.1–58.8 | 8.1–8.4 | 4 GiB | 3.1 + 15 first prompt |"""


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


def full_size(model: Path) -> list[LoopRow]:
    """Run the whole loop on a full-size shape, over loopback SSH."""
    root = work_folder()
    with start_loopback(root) as server:
        target = loopback_target("loopback", server, root)
        measured_first(target)
        options = LoopOptions(load_workload("pp512-tg128"))
        return render.follow(run(str(model), [target], FULL_SIZE_RECIPES, options))


def like_for_like() -> str:
    """Measure all recipes on phi3-nano with the same weights, text, windows and workload; returns Markdown tables."""
    root = work_folder()
    recipes = [recipe.name for recipe in list_recipes() if not impossible(recipe, "cpu")]
    with start_loopback(root) as server:
        target = loopback_target("loopback", server, root)
        options = LoopOptions(load_workload("demo"), fresh=True)
        reports = reports_of(render.follow(run("phi3-nano", [target], recipes, options)))
    rows, divergences = [], {}
    for report in reports:
        bundle = find_bundle(report.bundle_id)
        found = render.follow(evaluate(bundle, None, read_eval_text(tokens=32_768)))
        decode = metrics(report)["decode_tps"]
        divergences[report.recipe] = f"{found.kld_mean:.5f} ± {found.kld_mean_error:.5f}"
        rows.append(
            [
                report.recipe,
                render.size(bundle.manifest.size_bytes),
                f"{8 * bundle.manifest.size_bytes / bundle.manifest.model.parameters:.1f}",
                f"{found.ppl:.2f} ± {found.ppl_error:.2f}",
                f"{found.ppl_increase:+.2%}",
                divergences[report.recipe],
                f"{found.kld_p99:.4f}",
                f"{found.top1:.1%}",
                f"{render.percent(found.token_match)} ± {render.percent(found.token_match_error)}",
                f"{render.figure(decode.median)} ± {decode.spread:.0%}",
            ]
        )
    rows.sort(key=lambda row: float(row[5].split()[0]))
    columns = ["recipe", "size", "bits a weight", "ppl", "increase", "KLD mean", "KLD p99", "top-1", "token match"]
    table = markdown.table([*columns, "decode tok/s"], rows)
    return f"{table}\n\nAt equal bits, by KL divergence:\n\n{at_equal_bits(divergences)}"


def at_equal_bits(divergences: dict[str, str]) -> str:
    """A table in Markdown of the three algorithms beside each other wherever all else is the same."""
    rows = [
        [weights, *(divergences.get(form.format(algorithm), "–") for algorithm in ("rtn", "kquant", "gptq"))]
        for weights, form in EQUAL_BITS.items()
    ]
    return markdown.table(["4-bit weights", "round-to-nearest", "k-quant", "GPTQ"], rows)


def measured_first(target: Target) -> None:
    """Measure memory and compute for a second: the predictions rest on that."""
    with connect(target) as device:
        prepared = render.follow(prepare(device))
        render.follow(measure(device, prepared.runtime, target_key(device, prepared.probe)))


def reports_of(rows: Sequence[LoopRow]) -> list[Report]:
    for row in rows:
        if row.error:
            raise row.error
    return [row.report for row in rows if row.report]


def sections(model: Path) -> Iterator[str]:
    """The sections of RESULTS.md, each as soon as it is measured."""
    yield "# Results\n\nOutput of `make results`; edit `benchmarks/results.py`, not this file.\n"
    yield f"""
## Full-size Phi-3-mini (3.8 B, random weights), built, pushed over SSH and measured on this machine

{as_markdown(reports_of(full_size(model)))}
Beside it, what was measured by hand earlier on another machine of two AMD EPYC cores, which had AVX512-VNNI:

{BEFORE}
"""
    yield f"""
## phi3-nano, the demo's table

{as_markdown(reports_of(render.follow(demo())))}"""
    yield f"""
## Recipes, like for like, on phi3-nano

32,768 tokens of held-out text in windows of 512, on this machine; ± is one standard error over windows, and the rows
share their windows, so differences between rows are far surer than that. Best first, by KL divergence from fp32. Bits a
weight count the whole bundle, tokenizer too; decode is phi3-nano's and says little about a large model. `edgephi eval`
gives the same figures for any bundle.

{like_for_like()}
"""
    yield f"""
## Start-up

Interleaved rounds of `python benchmarks/startup.py`:

{startup.section(20)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help=f"a {FULL_SIZE} folder; synthesized when absent")
    for section in sections(parser.parse_args().model or synthesized()):
        sys.stdout.write(section)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
