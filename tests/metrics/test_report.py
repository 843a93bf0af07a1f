from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.support.figures import SAMPLE, figures, make_report, make_run
from tests.support.paths import DATA
from toolkit.catalog.settings import RuntimeSettings
from toolkit.errors import ConfigError
from toolkit.metrics import Report, metrics
from toolkit.metrics.kept_reports import find_report
from toolkit.metrics.report import (
    decode_tps,
    inter_token_ms,
    prefill_tps,
    read_report,
    remarks,
    save_report,
    to_json,
    ttft_ms,
)

FIXTURES = DATA / "reports"


def test_metrics_of_one_sample_follow_their_definitions() -> None:
    assert ttft_ms(SAMPLE) == 200
    assert prefill_tps(SAMPLE) == 500
    assert decode_tps(SAMPLE) == pytest.approx(20)
    assert inter_token_ms(SAMPLE) == [50, 50, 50, 50]


def test_metrics_of_a_report() -> None:
    found = metrics(make_report([make_run(cold=True, load_ns=4_000_000_000), make_run(), make_run()]))
    assert found["load_cold_s"].median == 4
    assert found["load_warm_s"].median == 1.5
    assert found["rss_peak_bytes"].median == 1000
    assert found["mem_available_delta_bytes"].median == 1200
    assert found["temp_c_max"].median == 61
    assert found["itl_p99_ms"].median == 50
    assert found["decode_tps"].n == 9
    assert "ppl" not in found


def test_perplexity_comes_from_the_run_that_measured_it() -> None:
    nll = [{"sum": 511 * math.log(20), "count": 511}] * 3
    assert metrics(make_report([make_run(nll=nll), make_run()]))["ppl"].median == pytest.approx(20)


def test_what_a_device_cannot_tell_is_left_out_and_not_zero() -> None:
    found = metrics(make_report([make_run(pss_bytes=None, temp_c_max=None, mem_available_start_bytes=None)]))
    assert not {"pss_bytes", "temp_c_max", "mem_available_delta_bytes"} & set(found)


def test_remarks_mark_throttled_unstable_and_changing_outputs() -> None:
    slow = SAMPLE.model_copy(update={"token_ns": [n * 3 for n in SAMPLE.token_ns], "tokens_sha256": "b"})
    report = make_report([make_run(throttled=True, samples=[SAMPLE, slow, SAMPLE, slow])])
    assert remarks(report) == ["throttled", "unstable", "tokens differ between repetitions"]
    assert remarks(make_report([make_run()])) == []


def test_a_saved_report_is_found_again_by_what_it_measured() -> None:
    old, new = (
        make_report([make_run()]),
        make_report([make_run(), make_run()], created="2026-01-03T00:00:00Z"),
    )
    save_report(old)
    path = save_report(new)
    assert path.name == "20260103T000000Z-pi5-bbbbbbbb-1d63.json"
    assert find_report(target="pi5", bundle_id="b" * 64) == new
    assert find_report(target="pi4") is None


def test_an_unreadable_report_does_not_hide_the_others() -> None:
    path = save_report(make_report([make_run()]))
    (path.parent / "99999999-broken.json").write_text("{")
    assert find_report(target="pi5") is not None
    with pytest.raises(ConfigError, match="not a report"):
        read_report(path.parent / "99999999-broken.json")


@pytest.mark.parametrize("content", [b"", b"5", b"[]", b'"settings"', b"\xff\xfe{}", b'{"report_version": 1}'])
def test_what_is_no_report_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"some\.json: not a report"):
        read_report(path)


def test_figures_of_the_bundle_stand_beside_its_measurements() -> None:
    report = make_report([make_run()])
    assert report.quality == {}
    evaluated = report.model_copy(update={"quality": {"held-out": figures()}})
    value = json.loads(json.dumps(to_json(evaluated)))
    assert value["quality"]["held-out"]["ppl"] == 20.4
    assert Report.model_validate(value) == evaluated


def test_json_carries_raw_samples_and_derived_metrics() -> None:
    value = json.loads(json.dumps(to_json(make_report([make_run()]))))
    assert value["runs"][0]["samples"][0]["token_ns"] == SAMPLE.token_ns
    assert value["metrics"]["ttft_ms"]["median"] == 200


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_reports_of_every_version_stay_readable(path: Path) -> None:
    assert metrics(read_report(path))["decode_tps"].median > 0


def test_there_is_a_fixture_of_this_version() -> None:
    assert [path.stem for path in FIXTURES.glob("v1*.json")]


def test_reports_of_before_settings_keep_their_threads(tmp_path: Path) -> None:
    table = json.loads((FIXTURES / "v1-phi3-nano.json").read_text())
    assert "settings" not in table
    path = tmp_path / "old.json"
    path.write_text(json.dumps(table | {"threads": 3}))
    report = read_report(path)
    assert report.settings == RuntimeSettings(threads=3)
    assert to_json(report)["threads"] == report.threads == 3


def test_reports_of_two_settings_in_one_second_are_both_kept() -> None:
    report = make_report([make_run()])
    other = report.model_copy(update={"settings": RuntimeSettings(threads=1)})
    assert save_report(report) != save_report(other)
    assert find_report(target="pi5", settings=RuntimeSettings(threads=1)) == other


def test_remarks_mark_what_was_emulated() -> None:
    report = make_report([make_run()])
    emulated = report.model_copy(update={"environment": {"board": "x", "emulated": "qemu in user mode"}})
    assert remarks(emulated) == ["emulated: correctness only"]
    assert remarks(report.model_copy(update={"environment": {"board": "x", "emulated": None}})) == []


def test_remarks_tell_what_speculation_lived_on() -> None:
    drafted = SAMPLE.model_copy(update={"drafted_tokens": 40, "accepted_tokens": 30})
    assert remarks(make_report([make_run(samples=[drafted, drafted])])) == [
        "75% of the drafted tokens held, which depends on the text"
    ]
