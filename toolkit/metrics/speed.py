"""How fast a device runs a footprint: from its data sheet, from a second of measuring, or from earlier reports."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

from toolkit.catalog.profile import Profile
from toolkit.errors import ConfigError
from toolkit.metrics.footprint import Footprint
from toolkit.metrics.measurement import Measurement, find_measurement
from toolkit.metrics.report import Predicted, Report, metrics, read_report, reports_dir

# Of what the memory can do, what decoding reached: of a measured read rate 0.67 (blocks of 128) to 0.74 (blocks of 32)
# on full-size mini, two x86 cores at 40 GB/s. A data sheet's peak is more than any core can read.
_MEASURED_READ_SHARE = 0.70
_STATED_READ_SHARE = 0.55
# Of the kernel alone, what whole prompts reached: 361 of 445 Gop/s on the same cores. Of a data sheet's peak: the
# same prompts against cores × clock × 128 operations.
_MEASURED_OPS_SHARE = 0.81
_STATED_OPS_SHARE = 0.40
# A report of another bundle says something about this one when they move about as many bytes: caches and the
# runtime's own time make small models another world.
_SIMILAR = 4.0
_REPORTS = 20
# How much of a token's time a report may lay on steps. A small model on a fast core takes less for the whole token
# than `step_s` allows: there the step is what has to be shorter.
_MOST_OF_A_STEP = 0.5


@dataclass(frozen=True)
class Speed:
    """What a device reaches while it runs a model; None where nothing is known.

    The sources are `stated` (in the profile), `measured` (`edgephi plan --measure`) or `reports`, of which `reports`
    were used. Operations are counted as in `Footprint`, whose `step_s` takes `step_share` of it here.
    """

    read_bytes_per_s: float | None = None
    ops_per_s: float | None = None
    step_share: float = 1.0
    read_source: str | None = None
    ops_source: str | None = None
    reports: int = 0


def find_speed(
    profile: Profile, target: str | None, footprint: Footprint, *, key: str | None = None, without: str | None = None
) -> Speed:
    """The best that is known of a device's speed, for a bundle of that footprint.

    `key` names one machine of those that were called `target`, the newest when absent; the reports of the bundle
    `without` don't count: a prediction from its own result is none.
    """
    speed = _stated(profile)
    if target is None:
        return speed
    measured = find_measurement(target, key)
    if measured is not None:
        speed = _with_measured(speed, measured, cpu=profile.runtime.provider == "cpu")
    return _with_reports(speed, list(_similar(target, key, footprint, without)))


def predict(
    footprint: Footprint, speed: Speed, prompt_tokens: int, generate_tokens: int, context_tokens: int, chunk_tokens: int
) -> Predicted:
    """What a generation after a prompt takes on a device; decoding at its mean depth.

    `chunk_tokens` of the prompt are processed at once, 0 for all.
    """
    at_once = min(prompt_tokens, chunk_tokens or prompt_tokens)
    read = footprint.read_bytes_per_token
    depth_read = read + (prompt_tokens + generate_tokens // 2) * footprint.kv_bytes_per_token
    ops = prompt_tokens * (footprint.prompt_ops_per_token + footprint.attention_ops * prompt_tokens // 2)
    step_s = footprint.step_s * speed.step_share
    decode_tps = prefill_s = None
    if speed.read_bytes_per_s:
        decode_tps = 1 / (depth_read / speed.read_bytes_per_s + step_s)
    if speed.ops_per_s:
        reading_s = read / speed.read_bytes_per_s if speed.read_bytes_per_s else 0.0
        prefill_s = max(ops / speed.ops_per_s, reading_s) + step_s
    return Predicted(
        bundle_bytes=footprint.bundle_bytes,
        load_bytes=footprint.load_bytes,
        memory_bytes=footprint.needed_bytes(context_tokens, at_once),
        decode_tps=decode_tps,
        prefill_tps=prefill_s and prompt_tokens / prefill_s,
        ttft_ms=prefill_s and prefill_s * 1000,
        decode_source=speed.read_source,
        prefill_source=speed.ops_source,
        reports=speed.reports,
        read_bytes=depth_read,
        prompt_ops=ops,
        step_s=footprint.step_s,
    )


def _stated(profile: Profile) -> Speed:
    bandwidth, compute = profile.hardware.memory_bandwidth_bytes_per_s, profile.hardware.compute_ops_per_s
    return Speed(
        read_bytes_per_s=bandwidth and bandwidth * _STATED_READ_SHARE,
        ops_per_s=compute and compute * _STATED_OPS_SHARE,
        read_source="stated" if bandwidth else None,
        ops_source="stated" if compute else None,
    )


def _with_measured(speed: Speed, measured: Measurement, *, cpu: bool) -> Speed:
    speed = replace(speed, read_bytes_per_s=measured.read_bytes_per_s * _MEASURED_READ_SHARE, read_source="measured")
    # The kernel runs on the CPU; it says nothing about a GPU.
    if measured.ops_per_s is None or not cpu:
        return speed
    return replace(speed, ops_per_s=measured.ops_per_s * _MEASURED_OPS_SHARE, ops_source="measured")


def _with_reports(speed: Speed, reports: list[tuple[Report, Predicted]]) -> Speed:
    if not reports:
        return speed
    reads, ops, shares = [], [], []
    for report, predicted in reports:
        found = metrics(report)
        decode_s, prefill_s = 1 / found["decode_tps"].median, found["ttft_ms"].median / 1000
        step_s = min(predicted.step_s, _MOST_OF_A_STEP * decode_s)
        shares.append(step_s / predicted.step_s)
        reads.append(predicted.read_bytes / (decode_s - step_s))
        ops.append(predicted.prompt_ops / max(prefill_s - step_s, (1 - _MOST_OF_A_STEP) * prefill_s))
    read, op, share = (statistics.median(values) for values in (reads, ops, shares))
    return Speed(read, op, share, "reports", "reports", len(reports))


def _similar(
    target: str, key: str | None, footprint: Footprint, without: str | None
) -> Iterator[tuple[Report, Predicted]]:
    """The newest reports of a machine that bear on a footprint."""
    used = 0
    for path in sorted(reports_dir().glob(f"*-{target}-*.json"), reverse=True):
        try:
            report = read_report(path)
        except ConfigError:
            continue
        key = key or (report.target_key if report.target == target else None)
        if report.target != target or report.target_key != key or report.bundle_id == without:
            continue
        # What drafts win depends on the text.
        if report.predicted is None or report.settings.ngram_size:
            continue
        ratio = report.predicted.read_bytes / max(1, footprint.read_bytes_per_token)
        if 1 / _SIMILAR < ratio < _SIMILAR:
            yield report, report.predicted
            used += 1
        if used == _REPORTS:
            return
