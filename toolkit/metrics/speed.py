"""The speed at which a device runs a footprint: by its data sheet, a second of measuring, or earlier reports."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

from toolkit.catalog import Profile
from toolkit.metrics.footprint import Footprint
from toolkit.metrics.kept_reports import Head, KeptReports
from toolkit.metrics.measurement import Measurement, find_measurement
from toolkit.metrics.report import Predicted, Report, metrics

# The share of the memory's rate that decoding reached: 0.67 (blocks of 128) to 0.74 (blocks of 32) of a measured read
# rate, on full-size mini, two x86 cores at 40 GB/s. A data sheet's peak is more than any core can read.
_MEASURED_READ_SHARE = 0.70
_STATED_READ_SHARE = 0.55
# The share of the kernel's rate that whole prompts reached: 361 of 445 Gop/s on the same cores. The share of a data
# sheet's peak: the same prompts against cores × clock × 128 operations.
_MEASURED_OPS_SHARE = 0.81
_STATED_OPS_SHARE = 0.40
# A report of another bundle says something about this one if both move about as many bytes: caches and the runtime's
# own time make small models differ from large ones.
_SIMILAR = 4.0
_REPORTS = 20
# The largest share of a report's time for a token that may count as the step. A small model on a fast core takes less
# for the whole token than `step_s`: there the step must be shorter than assumed.
_MOST_OF_A_STEP = 0.5


# Reports of models that read more than caches hold for every token tell the memory's rate; those of smaller ones tell
# the runtime's own time. Of such the newest few are looked at.
_TELLING_BYTES, _TELLING_OPS, _TELLING_REPORTS = 256 << 20, 10**11, 5
# Predictions from a quiet second were within 30 % (benchmarks/RESULTS.md); a busy machine was off by a factor of 30.
_CONTRADICTION = 2.0


@dataclass(frozen=True)
class Speed:
    """The rates that a device reaches while it runs a model; None where nothing is known.

    The sources are `stated` (in the profile), `measured` (`edgephi plan --measure`) or `reports`; `reports` is the
    number of reports used. Operations are counted as in `Footprint`; a step takes `step_share` of its `step_s` here.
    """

    read_bytes_per_s: float | None = None
    ops_per_s: float | None = None
    step_share: float = 1.0
    read_source: str | None = None
    ops_source: str | None = None
    reports: int = 0


@dataclass(frozen=True)
class _Reached:
    """The speed of a device in one report, with the prediction that was made for its bundle."""

    decode_s: float
    prefill_s: float
    predicted: Predicted

    @classmethod
    def of(cls, report: Report) -> _Reached | None:
        if report.predicted is None:
            return None
        found = metrics(report)
        return cls(1 / found.median("decode_tps"), found.median("ttft_ms") / 1000, report.predicted)


class SpeedBook:
    """The speed of one machine by the best source there is, for any number of footprints.

    It uses the measurement and the reports that were kept when it was made. It opens only the reports that the
    footprints need, each once.
    """

    def __init__(
        self, profile: Profile, target: str | None, key: str | None = None, measured: Measurement | None = None
    ) -> None:
        """`key` names one machine of those that were called `target`, the newest when absent. `measured` was taken just
        now; a kept one is looked for without it, and isn't believed when reports contradict it (`contradicted`).
        """
        self.contradicted = False
        self._without_reports = _stated(profile)
        self._key = key
        self._target = target
        self._kept = KeptReports(target) if target is not None else None
        self._bearing: list[tuple[str, Head]] = []
        self._rest = self._of_machine(self._kept) if self._kept else iter(())
        self._reached: dict[str, _Reached | None] = {}
        if measured is None and target is not None and (kept := find_measurement(target, key)):
            self.contradicted = contradicted(profile, kept)
            measured = None if self.contradicted else kept
        if measured is not None:
            self._without_reports = _with_measured(self._without_reports, measured, cpu=_on_cpu(profile))

    def speed(self, footprint: Footprint, *, without: str | None = None) -> Speed:
        """The speed of a bundle of that footprint.

        The reports of the bundle `without` don't count: a result must not predict itself.
        """
        if self._kept is None:
            return self._without_reports
        kept = self._kept
        found = (self._read(kept, name) for name in self._similar(footprint.read_bytes_per_token, without))
        reached = list(islice((entry for entry in found if entry), _REPORTS))
        kept.save_index()
        return _with_reports(self._without_reports, reached)

    def _similar(self, read_bytes: int, without: str | None) -> Iterator[str]:
        """Give the machine's reports, newest first, that bear on a bundle whose decoding reads `read_bytes` a token."""
        for name, head in chain(self._bearing, self._rest):
            ratio = (head.read_bytes or 0) / max(1, read_bytes)
            if 1 / _SIMILAR < ratio < _SIMILAR and head.bundle_id != without:
                yield name

    def _of_machine(self, kept: KeptReports) -> Iterator[tuple[str, Head]]:
        """Give the machine's reports that tell its speed, and note each of them for later footprints."""
        for name, head in kept.heads():
            # Users gave the other names themselves: those don't say how old a report is.
            if head.target != self._target or f"-{self._target}-" not in name:
                continue
            self._key = self._key or head.target_key
            if head.target_key == self._key and head.read_bytes is not None:
                self._bearing.append((name, head))
                yield name, head

    def _read(self, kept: KeptReports, name: str) -> _Reached | None:
        if name not in self._reached:
            report = kept.read(name)
            self._reached[name] = _Reached.of(report) if report else None
        return self._reached[name]


def find_speed(
    profile: Profile,
    target: str | None,
    footprint: Footprint,
    *,
    key: str | None = None,
    without: str | None = None,
    measured: Measurement | None = None,
) -> Speed:
    """A device's speed for one bundle by the best source there is, as a `SpeedBook` has it for many."""
    return SpeedBook(profile, target, key, measured).speed(footprint, without=without)


def contradicted(profile: Profile, measured: Measurement) -> bool:
    """Tell if real runs on the same machine were at least twice as fast or as slow as a measurement says they are.

    Only runs of models that are larger than caches count, on a CPU: the measurement says nothing about a GPU.
    """
    if measured.confirmed or not _on_cpu(profile):
        return False
    expected = _with_measured(Speed(), measured, cpu=True)
    reached = list(islice(_telling(measured), _TELLING_REPORTS))
    if not reached:
        return False
    found = _with_reports(Speed(), reached)
    pairs = [(found.read_bytes_per_s, expected.read_bytes_per_s)]
    if all(entry.predicted.prompt_ops >= _TELLING_OPS for entry in reached):
        pairs.append((found.ops_per_s, expected.ops_per_s))
    return any(a and b and not 1 / _CONTRADICTION < a / b < _CONTRADICTION for a, b in pairs)


def _telling(measured: Measurement) -> Iterator[_Reached]:
    """Give the reports of a measurement's machine that tell its memory's rate, the newest first."""
    kept = KeptReports(measured.target)
    for name, head in kept.heads():
        same = (head.target, head.target_key) == (measured.target, measured.target_key)
        if same and (head.read_bytes or 0) >= _TELLING_BYTES and (report := kept.read(name)):
            reached = _Reached.of(report)
            if reached is not None:
                yield reached
    kept.save_index()


def _on_cpu(profile: Profile) -> bool:
    return profile.runtime.provider == "cpu"


def predict(
    footprint: Footprint, speed: Speed, prompt_tokens: int, generate_tokens: int, context_tokens: int, chunk_tokens: int
) -> Predicted:
    """Predict the memory and the rates of a generation after a prompt; decoding is taken at its mean depth.

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


def _with_reports(speed: Speed, reports: list[_Reached]) -> Speed:
    if not reports:
        return speed
    reads, ops, shares = [], [], []
    for reached in reports:
        predicted, decode_s, prefill_s = reached.predicted, reached.decode_s, reached.prefill_s
        step_s = min(predicted.step_s, _MOST_OF_A_STEP * decode_s)
        shares.append(step_s / predicted.step_s)
        reads.append(predicted.read_bytes / (decode_s - step_s))
        ops.append(predicted.prompt_ops / max(prefill_s - step_s, (1 - _MOST_OF_A_STEP) * prefill_s))
    read, op, share = (statistics.median(values) for values in (reads, ops, shares))
    return Speed(read, op, share, "reports", "reports", len(reports))
