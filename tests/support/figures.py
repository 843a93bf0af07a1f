"""Figures of quality and speed, as evaluations and benchmarks report them."""

from __future__ import annotations

from typing import Any

from toolkit.catalog import Workload, load_profile, load_recipe
from toolkit.catalog.preset import PRESETS
from toolkit.catalog.settings import RuntimeSettings
from toolkit.catalog.shape import parse_shape
from toolkit.metrics import Quality, Report
from toolkit.metrics.footprint import footprint
from toolkit.metrics.report import Run, Sample
from toolkit.metrics.speed import find_speed, predict

MINI = parse_shape(PRESETS["phi-3-mini-4k"].config(), "mini")

# 100 prompt tokens read in 200 ms, then a token every 50 ms.
SAMPLE = Sample(prompt_tokens=100, token_ns=[200_000_000 + i * 50_000_000 for i in range(5)], tokens_sha256="a")


def figures(**changes: Any) -> Quality:
    facts: dict[str, Any] = {
        "text_sha256": "0" * 64,
        "tokens": 4088,
        "window_tokens": 512,
        "reference_identity": "1" * 64,
        "reference_arch": "x86_64",
        "arch": "x86_64",
        "ppl": 20.4,
        "ppl_error": 0.5,
        "reference_ppl": 20.0,
        "kld_mean": 0.01,
        "kld_mean_error": 0.001,
        "kld_p99": 0.1,
        "top1": 0.9,
        "top1_error": 0.01,
        "token_match": 0.5,
        "token_match_error": 0.05,
        "match_prompts": 16,
        "match_tokens": 64,
    }
    return Quality.model_validate(facts | changes)


def make_run(**changes: object) -> Run:
    facts: dict[str, object] = {
        "load_ns": 1_500_000_000,
        "load_peak_bytes": 900,
        "rss_peak_bytes": 1000,
        "pss_bytes": 800,
        "mem_available_start_bytes": 5000,
        "mem_available_min_bytes": 3800,
        "temp_c_start": 50.0,
        "temp_c_max": 61.0,
        "throttled": False,
        "cold": False,
        "samples": [SAMPLE, SAMPLE, SAMPLE],
    }
    return Run.model_validate(facts | changes)


def make_report(runs: list[Run], created: str = "2026-01-02T03:04:05Z", target: str = "pi5") -> Report:
    return Report(
        created_utc=created,
        edgephi_version="0.1.0",
        agent_sha256="0" * 64,
        target=target,
        target_key="k",
        profile="raspberry-pi-5-8gb",
        bundle_id="b" * 64,
        bundle_name="phi3-nano-int4",
        model="phi3-nano",
        recipe="int4-rtn-b32",
        bundle_bytes=9_000_000,
        context_tokens=1024,
        workload=Workload(name="w", description="d", prompt_tokens=100, generate_tokens=5),
        settings=RuntimeSettings(),
        runtime=["onnxruntime-genai==0.18.0"],
        environment={"board": "x"},
        runs=runs,
    )


def mini_report(decode_tps: float, prefill_tps: float, recipe: str = "int4-rtn-b32", **changes: object) -> Report:
    """A report of full-size Phi-3-mini at these rates, with the prediction that a plan makes for it."""
    found = footprint(MINI, load_recipe(recipe), "cpu")
    predicted = predict(found, find_speed(load_profile("local"), None, found), 512, 128, 640, 0)
    first = 512 / prefill_tps * 1e9
    stamps = [round(first + index / decode_tps * 1e9) for index in range(128)]
    sample = Sample(prompt_tokens=512, token_ns=stamps, tokens_sha256="0" * 64)
    made = make_report([make_run()])
    runs = [run.model_copy(update={"samples": [sample]}) for run in made.runs]
    table = {"target": "here", "target_key": "a" * 16, "predicted": predicted, "runs": runs}
    return made.model_copy(update=table | changes)
