"""Reports: raw samples with everything needed to replay them, and the metrics derived from them."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, computed_field, model_validator

from toolkit.catalog import Workload
from toolkit.catalog.facts import Bytes, Count
from toolkit.catalog.record import OpenRecord, read_record
from toolkit.catalog.settings import RuntimeSettings
from toolkit.config import data_dir, shown
from toolkit.errors import ConfigError
from toolkit.files import write_whole
from toolkit.metrics.quality import Quality
from toolkit.metrics.stats import Summaries, Summary, percentile, perplexity
from toolkit.untrusted import reason

# A row is marked when the relative half-width of its decode rate's interval is above this: its figures are weather, not
# climate.
UNSTABLE_SPREAD = 0.10
# The natural logarithm of the largest vocabulary is 18; a likelihood that a model gives a token is hardly smaller.
_MOST_NATS = 500

Nanoseconds = Annotated[int, Field(strict=True, ge=0, lt=2**60)]
Celsius = Annotated[float, Field(strict=True, gt=-300, lt=1000)]
Rate = Annotated[float, Field(ge=0, lt=1e15)]


class Sample(OpenRecord):
    """One generation. `token_ns[i]` is the time from submitting the prompt to having token i, in nanoseconds.

    With n-gram speculation it counts the tokens that were drafted and checked, and those of them that held.
    """

    prompt_tokens: Count
    token_ns: list[Nanoseconds]
    tokens_sha256: str
    drafted_tokens: Count | None = None
    accepted_tokens: Count | None = None

    @model_validator(mode="after")
    def _time_goes_on(self) -> Sample:
        if any(late < early for early, late in itertools.pairwise([0, *self.token_ns])):
            raise ValueError("time runs backwards in token_ns")
        return self

    @property
    def is_timed(self) -> bool:
        """True when rates follow from it: two tokens or more, and time between the first and the last."""
        return len(self.token_ns) > 1 and 0 < self.token_ns[0] < self.token_ns[-1]


class NegativeLogLikelihood(OpenRecord):
    """The sum over the tokens of one window of text, in nats, and their count."""

    sum: Annotated[float, Field(strict=True, ge=0, lt=1e9)]
    count: Annotated[int, Field(strict=True, ge=1, lt=2**40)]

    @model_validator(mode="after")
    def _is_a_likelihood(self) -> NegativeLogLikelihood:
        if self.sum > _MOST_NATS * self.count:
            raise ValueError(f"{self.sum:.3g} nats for {self.count} tokens")
        return self


class Run(OpenRecord):
    """One fresh process on the device. Bytes and nanoseconds; None where the device can't tell."""

    load_ns: Nanoseconds
    load_peak_bytes: Bytes | None
    rss_peak_bytes: Bytes | None
    pss_bytes: Bytes | None
    mem_available_start_bytes: Bytes | None
    mem_available_min_bytes: Bytes | None
    temp_c_start: Celsius | None
    temp_c_max: Celsius | None
    throttled: bool | None
    cold: bool
    samples: list[Sample]
    nll: list[NegativeLogLikelihood] | None = None


class Predicted(OpenRecord):
    """The fit plan's prediction of this workload on this target, made before the measurement.

    A rate is None where nothing was known of the device's speed. The sources are `stated`, `measured` or `reports`;
    `reports` is the number of reports used. The rates were derived from the rest: bytes read for a token at the
    workload's mean depth, operations of the whole prompt, and seconds that a step takes besides.
    """

    bundle_bytes: int
    load_bytes: int
    memory_bytes: int
    decode_tps: Rate | None
    prefill_tps: Rate | None
    ttft_ms: Rate | None
    decode_source: str | None
    prefill_source: str | None
    reports: int
    read_bytes: Annotated[int, Field(gt=0)]
    prompt_ops: Annotated[int, Field(gt=0)]
    step_s: Annotated[float, Field(gt=0, lt=1e6)]


class Report(OpenRecord):
    """Comparable runs of one bundle on one target under one workload."""

    report_version: Literal[1] = 1
    created_utc: str
    edgephi_version: str
    agent_sha256: str
    target: str
    target_key: str
    profile: str
    bundle_id: str
    bundle_name: str
    model: str
    recipe: str
    bundle_bytes: Bytes
    context_tokens: Count
    workload: Workload
    settings: RuntimeSettings = RuntimeSettings()
    runtime: list[str]
    # The probe's facts, as an agent of any version told them.
    environment: dict[str, JsonValue]
    # The bundle's own figures, by text: measured on the host, not by these runs.
    quality: dict[str, Quality] = Field(default_factory=dict)
    predicted: Predicted | None = None
    runs: list[Run] = Field(min_length=1)

    @model_validator(mode="after")
    def _says_how_fast(self) -> Report:
        for sample in (sample for run in self.runs for sample in run.samples):
            if not sample.is_timed:
                raise ValueError("a sample without a time between its tokens")
        if not any(run.samples for run in self.runs):
            raise ValueError("no sample")
        return self

    @model_validator(mode="before")
    @classmethod
    def _settings_of_old(cls, table: Any) -> Any:
        """Read the first reports, which knew no other setting than `threads`, and had it beside the workload."""
        if not isinstance(table, dict) or "settings" in table or "threads" not in table:
            return table
        return table | {"settings": {"threads": table["threads"]}}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def threads(self) -> int | None:
        return self.settings.threads


def ttft_ms(sample: Sample) -> float:
    """Time to first token: from submitting the prompt to having the first token, in milliseconds."""
    return sample.token_ns[0] / 1e6


def prefill_tps(sample: Sample) -> float:
    """Prompt tokens a second until the first token: it includes sampling that one token, as TTFT does."""
    return sample.prompt_tokens / (sample.token_ns[0] / 1e9)


def decode_tps(sample: Sample) -> float:
    """Tokens a second from the first to the last token, the first one not counted."""
    return (len(sample.token_ns) - 1) / ((sample.token_ns[-1] - sample.token_ns[0]) / 1e9)


def inter_token_ms(sample: Sample) -> list[float]:
    """The gaps between tokens, in milliseconds."""
    return [(b - a) / 1e6 for a, b in zip(sample.token_ns, sample.token_ns[1:], strict=False)]


def metrics(report: Report) -> Summaries:
    """Every metric that the report's runs support, by the name it has in DESIGN's vocabulary; units stand in
    the name.

    `ppl`'s interval is ±1.96 standard errors over windows of text.
    """
    samples = [sample for run in report.runs for sample in run.samples]
    gaps = sorted(gap for sample in samples for gap in inter_token_ms(sample))
    found: dict[str, Sequence[float] | Summary] = {
        "ttft_ms": [ttft_ms(sample) for sample in samples],
        "prefill_tps": [prefill_tps(sample) for sample in samples],
        "decode_tps": [decode_tps(sample) for sample in samples],
        "e2e_s": [sample.token_ns[-1] / 1e9 for sample in samples],
    }
    for q in (50, 95, 99):
        value = percentile(gaps, q)
        found[f"itl_p{q}_ms"] = Summary(value, value, value, len(gaps))
    return Summaries({**found, **_loads(report.runs), **_memory(report.runs), **_quality(report.runs)})


def _loads(runs: list[Run]) -> dict[str, list[float]]:
    cold = [run.load_ns / 1e9 for run in runs if run.cold]
    warm = [run.load_ns / 1e9 for run in runs if not run.cold]
    return {name: values for name, values in (("load_cold_s", cold), ("load_warm_s", warm)) if values}


def _memory(runs: list[Run]) -> dict[str, list[float]]:
    columns: dict[str, list[float | None]] = {
        "load_peak_bytes": [run.load_peak_bytes for run in runs],
        "rss_peak_bytes": [run.rss_peak_bytes for run in runs],
        "pss_bytes": [run.pss_bytes for run in runs],
        "mem_available_delta_bytes": [_mem_available_delta(run) for run in runs],
        "temp_c_max": [run.temp_c_max for run in runs],
    }
    present = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {name: values for name, values in present.items() if values}


def _mem_available_delta(run: Run) -> int | None:
    if run.mem_available_start_bytes is None or run.mem_available_min_bytes is None:
        return None
    return run.mem_available_start_bytes - run.mem_available_min_bytes


def _quality(runs: list[Run]) -> dict[str, Summary]:
    nll = next((run.nll for run in runs if run.nll), None)
    if nll is None:
        return {}
    value, error = perplexity([window.sum for window in nll], [window.count for window in nll])
    margin = 0.0 if math.isnan(error) else 1.96 * error
    return {"ppl": Summary(value, value - margin, value + margin, len(nll))}


def remarks(report: Report) -> list[str]:
    """The reasons to read a row with care: emulated, throttled, unstable, outputs that differ, speculation."""
    return _remarks(report, metrics(report))


def _remarks(report: Report, derived: Summaries) -> list[str]:
    found = []
    if report.environment.get("emulated"):
        found.append("emulated: correctness only")
    if any(run.throttled for run in report.runs):
        found.append("throttled")
    if derived["decode_tps"].spread > UNSTABLE_SPREAD:
        found.append("unstable")
    if len({sample.tokens_sha256 for run in report.runs for sample in run.samples}) > 1:
        found.append("tokens differ between repetitions")
    if drafted := sum(sample.drafted_tokens or 0 for run in report.runs for sample in run.samples):
        accepted = sum(sample.accepted_tokens or 0 for run in report.runs for sample in run.samples)
        found.append(f"{accepted / drafted:.0%} of the drafted tokens held, which depends on the text")
    return found


def to_json(report: Report) -> dict[str, Any]:
    """The report with its derived metrics beside the raw runs."""
    derived = metrics(report)
    table = {name: vars(summary) for name, summary in derived.items()}
    return report.model_dump(mode="json") | {"metrics": table, "remarks": _remarks(report, derived)}


def reports_dir() -> Path:
    """The folder of all reports; file names sort by time."""
    return data_dir() / "reports"


def report_path(report: Report) -> Path:
    """The path of a kept report. Settings stand in the name too: a search can measure several in one second."""
    stamp = report.created_utc.replace(":", "").replace("-", "")
    settings = hashlib.sha256(report.settings.model_dump_json().encode()).hexdigest()[:4]
    return reports_dir() / f"{stamp}-{report.target}-{report.bundle_id[:8]}-{settings}.json"


def save_report(report: Report) -> Path:
    """Keep a report. Raises ConfigError when it can't be written."""
    path = report_path(report)
    write_whole(path, json.dumps(to_json(report), indent=1))
    return path


def read_report(path: Path) -> Report:
    """Read a report of any version.

    Raises ConfigError when it isn't one.
    """
    try:
        return read_record(Report, path)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{shown(path)}: not a report: {reason(exc)}") from exc
