"""toolkit.metrics.speed: measured rates of full-size Phi-3-mini, and the choice of the source."""

from __future__ import annotations

import random
import statistics

import pytest

from tests.support.figures import MINI, make_report, make_run, mini_report
from toolkit.catalog import load_profile, load_recipe
from toolkit.catalog.recipe import impossible, list_recipes
from toolkit.catalog.settings import RuntimeSettings
from toolkit.metrics import Footprint, Predicted, Report, metrics, plan
from toolkit.metrics.footprint import footprint
from toolkit.metrics.measurement import Measurement, find_measurement, save_measurement
from toolkit.metrics.report import read_report, reports_dir, save_report
from toolkit.metrics.speed import Speed, SpeedBook, contradicted, find_speed, predict

LOCAL = load_profile("local")
PI5 = load_profile("raspberry-pi-5-8gb")
# The rates of two cores of an AMD EPYC (AVX512-VNNI) without other load.
READ, KERNELS = 40e9, 41.5


def of(recipe: str) -> Footprint:
    return footprint(MINI, load_recipe(recipe), "cpu")


def measurement(key: str = "0" * 16, **changes: object) -> Measurement:
    table = {"target": "here", "target_key": key, "created_utc": "2026-01-01T00:00:00Z"}
    return Measurement.model_validate(table | {"read_bytes_per_s": READ, "kernels_per_s": KERNELS} | changes)


# pp512-tg128 over loopback SSH; the figures of the last line are the middle of earlier measurements by hand.
@pytest.mark.parametrize(
    ("recipe", "prefill", "decode", "memory"),
    [
        ("int4-rtn-b32", 28.7, 9.08, 4.28e9),
        ("int4-rtn-b128", 41.1, 10.5, 3.12e9),
        ("int4-rtn-b128-pruned", 43.9, 11.8, 2.80e9),
    ],
)
def test_full_size_mini(recipe: str, prefill: float, decode: float, memory: float) -> None:
    save_measurement(measurement())
    speed = find_speed(LOCAL, "here", of(recipe))
    found = predict(of(recipe), speed, 512, 128, 640, 0)
    assert (found.decode_source, found.prefill_source) == ("measured", "measured")
    assert found.decode_tps == pytest.approx(decode, rel=0.15)
    assert found.prefill_tps == pytest.approx(prefill, rel=0.15)
    assert found.ttft_ms == pytest.approx(512 / prefill * 1000, rel=0.15)
    assert found.memory_bytes == pytest.approx(memory, rel=0.06)


def test_nothing_is_predicted_from_nothing() -> None:
    found = predict(of("int4-rtn-b32"), find_speed(LOCAL, "here", of("int4-rtn-b32")), 512, 128, 640, 0)
    assert (found.decode_tps, found.prefill_tps, found.ttft_ms) == (None, None, None)
    assert (found.decode_source, found.prefill_source) == (None, None)
    assert found.memory_bytes > 4e9


def test_a_data_sheet_is_better_than_nothing_and_a_measurement_than_a_data_sheet() -> None:
    stated = find_speed(PI5, "here", of("int4-rtn-b32"))
    assert (stated.read_source, stated.ops_source) == ("stated", "stated")
    save_measurement(measurement(kernels_per_s=None))
    measured = find_speed(PI5, "here", of("int4-rtn-b32"))
    assert (measured.read_source, measured.ops_source) == ("measured", "stated")
    assert measured.ops_per_s == stated.ops_per_s


def test_a_cpus_kernel_says_nothing_about_a_gpu() -> None:
    save_measurement(measurement())
    jetson = find_speed(load_profile("jetson-orin-nano-8gb"), "here", of("int4-rtn-b32"))
    assert (jetson.read_source, jetson.ops_source) == ("measured", "stated")


def test_the_newest_measurement_of_the_target_counts_or_the_machines_own() -> None:
    save_measurement(measurement("a" * 16))
    save_measurement(measurement("b" * 16, created_utc="2026-02-01T00:00:00Z", read_bytes_per_s=1e9))
    save_measurement(measurement("c" * 16, target="here-too", created_utc="2026-03-01T00:00:00Z"))
    newest, own = find_measurement("here"), find_measurement("here", "a" * 16)
    assert newest is not None and newest.read_bytes_per_s == 1e9
    assert own is not None and own.read_bytes_per_s == READ
    assert find_measurement("elsewhere") is None


def test_reports_of_other_bundles_calibrate() -> None:
    save_report(mini_report(4.0, 14.0, bundle_id="1" * 64))
    speed = find_speed(PI5, "here", of("int4-rtn-b128"))
    assert (speed.read_source, speed.ops_source, speed.reports) == ("reports", "reports", 1)
    found = predict(of("int4-rtn-b32"), speed, 512, 128, 640, 0)
    assert found.decode_tps == pytest.approx(4.0, rel=0.01)
    assert found.prefill_tps == pytest.approx(14.0, rel=0.01)
    assert found.reports == 1


def test_a_report_faster_than_the_steps_that_were_allowed_for_it_shortens_the_steps() -> None:
    steps_s = of("int4-rtn-b32").step_s
    save_report(mini_report(2 / steps_s, 1024 / steps_s, bundle_id="1" * 64))
    speed = find_speed(LOCAL, "here", of("int4-rtn-b128"))
    assert (speed.reports, speed.step_share) == (1, pytest.approx(0.25))
    found = predict(of("int4-rtn-b32"), speed, 512, 128, 640, 0)
    assert found.decode_tps == pytest.approx(2 / steps_s, rel=0.01)
    assert found.prefill_tps == pytest.approx(1024 / steps_s, rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"bundle_id": "2" * 64},
        {"target": "elsewhere"},
        {"settings": RuntimeSettings(ngram_size=3)},
        {"predicted": None},
    ],
    ids=["the bundle itself", "another target", "speculation", "no prediction"],
)
def test_reports_that_say_nothing_are_left_out(changes: dict[str, object]) -> None:
    save_report(mini_report(4.0, 14.0, **({"bundle_id": "1" * 64} | changes)))
    assert find_speed(PI5, "here", of("int4-rtn-b32"), without="2" * 64).reports == 0


def from_every_report(target: str, key: str, found: Footprint, without: str) -> Speed:
    """The definition, spelled out: every file is opened, and every median comes from a summary with its interval."""
    steps, reads, ops, shares = [], [], [], []
    for path in sorted(reports_dir().glob("*.json"), reverse=True):
        kept = read_report(path)
        said = kept.predicted
        if kept.target != target or kept.target_key != key or kept.bundle_id == without or said is None:
            continue
        if kept.settings.ngram_size or not 1 / 4 < said.read_bytes / found.read_bytes_per_token < 4 or len(reads) == 20:
            continue
        decode_s, prefill_s = 1 / metrics(kept)["decode_tps"].median, metrics(kept)["ttft_ms"].median / 1000
        steps.append(min(said.step_s, 0.5 * decode_s))
        shares.append(steps[-1] / said.step_s)
        reads.append(said.read_bytes / (decode_s - steps[-1]))
        ops.append(said.prompt_ops / max(prefill_s - steps[-1], 0.5 * prefill_s))
    rates = (statistics.median(values) for values in (reads, ops, shares))
    return Speed(*rates, "reports", "reports", len(reads))


def test_one_book_answers_for_every_recipe_what_all_reports_say_to_the_last_digit() -> None:
    source = random.Random(5)
    for day in range(60):
        kept = mini_report(source.uniform(2, 9), source.uniform(9, 40), source.choice(["int4-rtn-b32", "fp32"]))
        changes = {"created_utc": f"2026-01-{day // 2 + 1:02d}T00:00:0{day % 2}Z", "bundle_id": f"{day % 7}" * 64}
        changes |= {"target": "here" if day % 4 else "here-too", "target_key": ("b" if day % 9 == 0 else "a") * 16}
        changes |= {"settings": RuntimeSettings(ngram_size=3 if day % 8 == 1 else 0)}
        save_report(kept.model_copy(update=changes))
    recipes = [recipe for recipe in list_recipes() if not impossible(recipe, "cpu")]
    found = [footprint(MINI, recipe, "cpu") for recipe in recipes]
    book = SpeedBook(PI5, "here", "a" * 16)
    answers = [book.speed(each, without="3" * 64) for each in found]
    assert answers == [from_every_report("here", "a" * 16, each, "3" * 64) for each in found]
    assert answers == [find_speed(PI5, "here", each, key="a" * 16, without="3" * 64) for each in found]
    assert len(set(answers)) > 1 and {answer.reports for answer in answers} >= {20}


def test_a_measurement_that_reports_contradict_is_not_believed() -> None:
    """A noisy second has a thirtieth of the rate: plans of a bundle that no report is like had 0.28 tok/s for 8.69."""
    found = of("fp32")
    for factor, believed in ((1, True), (1 / 30, False), (0.7, True), (3, False)):
        save_measurement(measurement("a" * 16, read_bytes_per_s=READ * factor))
        book = SpeedBook(LOCAL, "here")
        assert book.speed(found).read_source == "measured"
        save_report(mini_report(9.0, 28.0, bundle_id="1" * 64))
        book = SpeedBook(LOCAL, "here")
        assert book.contradicted is not believed
        assert book.speed(found).read_source == ("measured" if believed else None)
        for path in reports_dir().glob("*.json"):
            path.unlink()


def test_reports_contradict_only_what_they_tell() -> None:
    slow = measurement("a" * 16, read_bytes_per_s=READ / 30)
    jetson = load_profile("jetson-orin-nano-8gb")
    save_report(mini_report(9.0, 28.0, target_key="b" * 16))
    assert not contradicted(LOCAL, slow), "of another machine"
    save_report(mini_report(9.0, 28.0, bundle_id="2" * 64))
    assert contradicted(LOCAL, slow)
    assert not contradicted(jetson, slow), "the kernel runs on the CPU"
    assert not contradicted(LOCAL, slow.model_copy(update={"confirmed": True}))


def test_a_kernel_that_was_measured_too_slow() -> None:
    save_report(mini_report(9.0, 28.0))
    assert not contradicted(LOCAL, measurement("a" * 16))
    assert contradicted(LOCAL, measurement("a" * 16, kernels_per_s=KERNELS / 10))


def test_small_models_contradict_nothing() -> None:
    """They lie in a cache, or take the runtime's own time."""
    predicted = mini_report(9.0, 28.0).predicted
    assert predicted is not None
    small = predicted.model_copy(update={"read_bytes": 3 << 20, "prompt_ops": 10**9})
    save_report(mini_report(9.0, 28.0, predicted=small))
    assert not contradicted(LOCAL, measurement("a" * 16, read_bytes_per_s=READ / 30))


def test_the_newest_machine_of_the_name_counts() -> None:
    save_report(mini_report(4.0, 14.0, bundle_id="1" * 64, created_utc="2026-01-01T00:00:00Z", target_key="a" * 16))
    save_report(mini_report(8.0, 28.0, bundle_id="1" * 64, created_utc="2026-01-02T00:00:00Z", target_key="b" * 16))
    of_b32 = of("int4-rtn-b32")
    assert find_speed(PI5, "here", of_b32) == find_speed(PI5, "here", of_b32, key="b" * 16)
    assert find_speed(PI5, "here", of_b32).reports == find_speed(PI5, "here", of_b32, key="a" * 16).reports == 1


def test_a_file_that_its_user_named_says_nothing_about_speed() -> None:
    path = save_report(mini_report(4.0, 14.0, bundle_id="1" * 64))
    path.rename(path.with_name("best-of-all.json"))
    assert find_speed(PI5, "here", of("int4-rtn-b32")).reports == 0


def test_small_models_say_nothing_about_large_ones() -> None:
    save_report(mini_report(4.0, 14.0, bundle_id="1" * 64))
    nano = footprint(MINI.model_copy(update={"hidden": 256, "intermediate": 640}), load_recipe("int4-rtn-b32"), "cpu")
    assert find_speed(PI5, "here", nano).reports == 0


def test_an_old_reports_lack_of_a_prediction_is_none() -> None:
    table = make_report([make_run()]).model_dump(mode="json")
    table.pop("predicted")
    assert Report.model_validate(table).predicted is None
    assert Predicted.model_validate(mini_report(4.0, 14.0).model_dump()["predicted"]).reports == 0


def test_decoding_slows_with_depth_and_short_prompts_are_bound_by_memory() -> None:
    save_measurement(measurement())
    shallow = plan(MINI, load_recipe("int4-rtn-b32"), LOCAL, 4096, prompt=1, known=SpeedBook(LOCAL, "here"))
    deep = plan(MINI, load_recipe("int4-rtn-b32"), LOCAL, 4096, prompt=4000, known=SpeedBook(LOCAL, "here"))
    assert shallow.decode_tps is not None and deep.decode_tps is not None and shallow.ttft_ms is not None
    assert deep.decode_tps < 0.55 * shallow.decode_tps
    assert shallow.ttft_ms == pytest.approx(1000 / shallow.decode_tps, rel=0.05)
