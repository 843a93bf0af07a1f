"""Benchmarks of a real bundle in the real runtime on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.boards import pi5_facts
from tests.support.builds import bundle as build, follow
from tests.support.devices import device_at, target_at
from toolkit.bench import bench, target_key
from toolkit.catalog import Workload
from toolkit.catalog.settings import RuntimeSettings
from toolkit.deploy import deploy
from toolkit.deploy.install import install
from toolkit.device import connect
from toolkit.errors import ConfigError
from toolkit.events import Event, Step
from toolkit.metrics import Report, metrics
from toolkit.metrics.report import reports_dir

TINY = Workload(name="tiny", description="", prompt_tokens=32, generate_tokens=8, warmup=1, repetitions=2, runs=2)


def measured(root: Path, recipe: str, workload: Workload) -> Report:
    with connect(target_at(root)) as device:
        bundle = build(recipe)
        follow(install(bundle, device))
        return follow(bench(device, bundle.id, workload))


def test_a_report_has_every_raw_sample_and_its_environment(root: Path) -> None:
    report = measured(root, "int4-rtn-b32", TINY)
    assert len(report.runs) == 2
    assert [run.cold for run in report.runs] == [True, False]
    for run in report.runs:
        assert len(run.samples) == 2
        for sample in run.samples:
            assert sample.prompt_tokens == 32
            assert len(sample.token_ns) == 8
            assert sample.token_ns == sorted(sample.token_ns)
    assert any(package.startswith("onnxruntime-genai==") for package in report.runtime)
    assert report.environment["cores"] >= 1
    assert report.bundle_bytes == build("int4-rtn-b32").manifest.size_bytes
    found = metrics(report)
    assert found["rss_peak_bytes"].median > report.bundle_bytes
    assert found["rss_peak_bytes"].median >= found["load_peak_bytes"].median
    assert list(reports_dir().glob("*.json"))


def test_greedy_repetitions_generate_the_same_tokens(root: Path) -> None:
    report = measured(root, "int4-rtn-b32", TINY)
    assert len({sample.tokens_sha256 for run in report.runs for sample in run.samples}) == 1


def test_int4_is_measurably_worse_than_fp32_on_held_out_text(root: Path) -> None:
    workload = TINY.model_copy(update={"runs": 1, "quality_tokens": 8192, "quality_window_tokens": 512})
    nll = {}
    for recipe in ("fp32", "int4-rtn-b32"):
        windows = measured(root, recipe, workload).runs[0].nll
        assert windows is not None and len(windows) == 16
        nll[recipe] = [window.sum / window.count for window in windows]
    # Both bundles read the same windows: the paired difference has a far smaller spread than either perplexity.
    worse = [int4 - fp32 for int4, fp32 in zip(nll["int4-rtn-b32"], nll["fp32"], strict=True)]
    mean = sum(worse) / len(worse)
    error = (sum((w - mean) ** 2 for w in worse) / (len(worse) - 1) / len(worse)) ** 0.5
    assert mean > 3 * error > 0


def test_a_kept_report_is_reused_only_for_the_same_thing(root: Path) -> None:
    bundle = build("int4-rtn-b32")
    with connect(target_at(root)) as device:
        follow(deploy(bundle, device))
        first = follow(bench(device, None, TINY))
        events: list[Event] = []
        assert follow(bench(device, None, TINY, reuse=True), events) == first
        assert any(isinstance(event, Step) and event.skipped and "measured on" in event.text for event in events)
        other = TINY.model_copy(update={"generate_tokens": 9})
        assert follow(bench(device, None, other, reuse=True)).created_utc >= first.created_utc
    assert len(list(reports_dir().glob("*.json"))) == 2


def test_a_workload_beyond_the_planned_context_is_refused(root: Path) -> None:
    bundle = build("int4-rtn-b32")
    planned = bundle.manifest.context_tokens
    with connect(target_at(root)) as device:
        follow(install(bundle, device))
        with pytest.raises(ConfigError) as error:
            follow(bench(device, bundle.id, TINY.model_copy(update={"prompt_tokens": planned})))
    assert error.value.message == (
        f"workload 'tiny' needs {planned + 8} tokens of context, {bundle.manifest.name} was planned for {planned}"
    )


def test_nothing_active_is_told_with_the_command_that_helps(root: Path) -> None:
    with connect(target_at(root)) as device, pytest.raises(ConfigError) as error:
        follow(bench(device, None, TINY))
    assert error.value.message == "here: nothing is active there"
    assert error.value.hint == "edgephi deploy BUNDLE here"


def test_settings_are_applied_recorded_and_part_of_what_is_reused(root: Path) -> None:
    bundle = build("int4-rtn-b32")
    chosen = RuntimeSettings(threads=1, chunk_size=16, ngram_size=2, max_draft_tokens=4)
    workload = TINY.model_copy(update={"prompt_tokens": 200, "generate_tokens": 48, "runs": 1})
    with connect(target_at(root)) as device:
        follow(install(bundle, device))
        plain = follow(bench(device, bundle.id, workload))
        drafted = follow(bench(device, bundle.id, workload, settings=chosen, reuse=True))
        assert drafted.settings == chosen
        assert plain.settings == RuntimeSettings().resolved(plain.environment["cores"])
        assert follow(bench(device, bundle.id, workload, settings=chosen, reuse=True)) == drafted
    (sample, _), (checked, _) = plain.runs[0].samples, drafted.runs[0].samples
    assert sample.drafted_tokens is None
    assert checked.drafted_tokens is not None and checked.accepted_tokens is not None
    assert checked.drafted_tokens >= checked.accepted_tokens > 0
    assert len(checked.token_ns) == 48
    assert len(list(reports_dir().glob("*.json"))) == 2


def test_what_was_predicted_stands_beside_what_was_measured(root: Path) -> None:
    from toolkit.cli.tables import as_markdown, predicted_rows

    report = measured(root, "int4-rtn-b32", TINY)
    predicted = report.predicted
    assert predicted is not None
    assert (predicted.decode_source, predicted.prefill_source) == ("measured", "measured")
    assert predicted.bundle_bytes == pytest.approx(report.bundle_bytes, rel=0.02)
    assert predicted.memory_bytes == pytest.approx(metrics(report)["rss_peak_bytes"].median, rel=0.25)
    assert predicted.decode_tps is not None and predicted.decode_tps > 0
    (row,) = predicted_rows([report])
    assert row[2].endswith("%)") and "MB" in row[2] and row[-1] == "measured"
    assert "Predicted before it was measured" in as_markdown([report])
    # A second bundle is predicted from the first one's report.
    again = measured(root, "int4-rtn-b128", TINY).predicted
    assert again is not None and (again.decode_source, again.reports) == ("reports", 1)


def test_a_machines_key_stays_the_one_of_its_kept_reports(root: Path) -> None:
    with device_at(root) as device:
        assert target_key(device, pi5_facts()) == "7a48fa8f6127bddc"
        assert target_key(device, pi5_facts(temp_c=80.0, free_disk_bytes=0, later="more")) == "7a48fa8f6127bddc"
        assert target_key(device, pi5_facts(cores=3)) != "7a48fa8f6127bddc"
