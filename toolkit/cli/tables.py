"""Tables of reports, and the ways to print them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from toolkit.cli import markdown, render
from toolkit.cli.options import Printed
from toolkit.config import shown
from toolkit.errors import ConfigError
from toolkit.metrics import Predicted, Quality, Report, metrics
from toolkit.metrics.quality import headline
from toolkit.metrics.report import remarks, report_path, reports_dir, to_json
from toolkit.metrics.stats import Summaries
from toolkit.untrusted import visible_json

COLUMNS = (
    "target",
    "model",
    "recipe",
    "size",
    "load\ns",
    "TTFT\nms",
    "prefill\ntok/s",
    "decode\ntok/s",
    "±",
    "ITL p95\nms",
    "peak\nRSS",
    "ppl",
)


# More columns where a bundle has quality figures, which are measured on the host, not on the device.
QUALITY_COLUMNS = ("ppl\nincrease", "KLD", "token\nmatch")


# The fit plan's prediction for each row, with its error against the measurement.
PREDICTED_COLUMNS = ("target", "recipe", "size", "TTFT ms", "prefill tok/s", "decode tok/s", "peak RSS", "speed from")
_PREDICTED_TITLE = "Predicted before it was measured (and how far off)"


def columns(reports: Sequence[Report]) -> list[str]:
    """The headings of `report_rows`."""
    return [*COLUMNS, *(QUALITY_COLUMNS if _evaluated(reports) else ())]


def _evaluated(reports: Sequence[Report]) -> bool:
    return any(report.quality for report in reports)


def report_rows(reports: Sequence[Report]) -> list[list[str]]:
    """One row of text a report, in the order of `columns`. `load s` is the cold load where there was one."""
    quality = _evaluated(reports)
    return [_row(report) + (_quality(report) if quality else []) for report in reports]


def _row(report: Report) -> list[str]:
    found = metrics(report)
    load = "load_cold_s" if "load_cold_s" in found else "load_warm_s"
    return [
        report.target,
        report.model.rpartition("/")[2],
        report.recipe,
        render.size(report.bundle_bytes),
        render.figure(_median(found, load)),
        render.figure(found.median("ttft_ms")),
        render.figure(found.median("prefill_tps")),
        render.figure(found.median("decode_tps")),
        f"{found['decode_tps'].spread:.0%}",
        render.figure(found.median("itl_p95_ms")),
        render.memory(_median(found, "rss_peak_bytes")),
        render.figure(_median(found, "ppl")),
    ]


def _quality(report: Report) -> list[str]:
    found = headline(report.quality)
    if found is None:
        return ["–", "–", "–"]
    return [f"{found.ppl_increase:+.2%}", f"{found.kld_mean:.4f}", render.percent(found.token_match)]


def predicted_rows(reports: Sequence[Report]) -> list[list[str]]:
    """One row a report that has a prediction, in the order of PREDICTED_COLUMNS."""
    return [_predicted(report, report.predicted) for report in reports if report.predicted]


def _predicted(report: Report, predicted: Predicted) -> list[str]:
    found = metrics(report)
    sources = dict.fromkeys(source for source in (predicted.decode_source, predicted.prefill_source) if source)
    return [
        report.target,
        report.recipe,
        _off(predicted.bundle_bytes, report.bundle_bytes, render.size),
        _off(predicted.ttft_ms, found.median("ttft_ms"), render.figure),
        _off(predicted.prefill_tps, found.median("prefill_tps"), render.figure),
        _off(predicted.decode_tps, found.median("decode_tps"), render.figure),
        _off(predicted.memory_bytes, _median(found, "rss_peak_bytes"), render.memory),
        ", ".join(sources) or "–",
    ]


def _off(predicted: float | None, measured: float | None, text: Callable[[float], str]) -> str:
    if predicted is None:
        return "–"
    return text(predicted) if not measured else f"{text(predicted)} ({predicted / measured - 1:+.0%})"


def footnotes(reports: Sequence[Report]) -> list[str]:
    """The notes below the table: workloads, devices, the measuring of quality, and the rows to read with care."""
    notes = []
    for report in reports:
        if marks := remarks(report):
            notes.append(f"{report.target}, {report.recipe}: {', '.join(marks)}")
    seen = dict.fromkeys(
        f"{r.target}: {r.environment['board']}, {r.environment['cores']} cores, "
        f"{r.settings.text or 'threads by the runtime'}, "
        f"{r.environment['os_name']}, Python {r.environment['python']}, {_runtime(r)}"
        for r in reports
    )
    workloads = dict.fromkeys(
        f"workload {r.workload.name}: {r.workload.prompt_tokens} tokens in, {r.workload.generate_tokens} out, "
        f"{r.workload.runs} processes × {r.workload.repetitions} repetitions; "
        "medians, ± is half the 95 % interval of decode"
        for r in reports
    )
    found = [quality for quality in (headline(report.quality) for report in reports) if quality]
    qualities = dict.fromkeys(_about(quality) for quality in found)
    return [*workloads, *seen, *qualities, *notes]


def _about(quality: Quality) -> str:
    text = f"quality: {quality.tokens} tokens, beside fp32, on {quality.arch}"
    if quality.token_match is not None:
        text += f"; token match: share of {quality.match_tokens} greedy tokens before the first difference"
    return text


def _runtime(report: Report) -> str:
    return ", ".join(
        p for p in report.runtime if p.replace("_", "-").startswith(("onnxruntime-genai", "onnxruntime=="))
    )


def _median(found: Summaries, name: str) -> float | None:
    return found.median(name) if name in found else None


def as_markdown(reports: Sequence[Report]) -> str:
    """The table with its footnotes as Markdown."""
    notes = "\n".join(f"- {markdown.text(note)}" for note in footnotes(reports))
    rows = [list(map(markdown.text, row)) for row in report_rows(reports)]
    text = f"{markdown.table(columns(reports), rows)}\n\n{notes}\n"
    if predictions := predicted_rows(reports):
        text += f"\n{_PREDICTED_TITLE}:\n\n{markdown.table(PREDICTED_COLUMNS, predictions)}\n"
    return text


def _show(reports: Sequence[Report]) -> None:
    """Print the table; a target or model that all rows share stands above it, so that it fits a terminal."""
    rows = report_rows(reports)
    common = [index for index in (0, 1) if len({row[index] for row in rows}) == 1]
    title = " on ".join(rows[0][index] for index in reversed(common))
    names = columns(reports)
    kept = [index for index in range(len(names)) if index not in common]
    render.table([names[i] for i in kept], [[row[i] for i in kept] for row in rows], title=title or None)
    for note in footnotes(reports):
        render.note(f"  {note}")
    if predictions := predicted_rows(reports):
        render.table(PREDICTED_COLUMNS, predictions, title=_PREDICTED_TITLE)


def as_payload(reports: Sequence[Report]) -> dict[str, object]:
    """The JSON of several reports."""
    return {"reports": [to_json(report) for report in reports]}


def _still_had(reports: Sequence[Report]) -> str:
    kept = all(report_path(report).is_file() for report in reports)
    return "the figures are above" + (f", and all of the report in {shown(reports_dir())}" if kept else "")


def write_reports(
    reports: Sequence[Report],
    payload: dict[str, object],
    printed: Printed,
) -> None:
    """Print reports as a table, as Markdown, or `payload` as JSON; or write a file, JSON or Markdown by its ending."""
    output = printed.output
    if printed.as_json or (output is not None and output.suffix == ".json"):
        text = visible_json(json.dumps(payload, indent=1)) + "\n"
        if printed.markdown:
            render.warn("--markdown has no effect where JSON is written")
    elif printed.markdown or output is not None:
        text = as_markdown(reports)
    else:
        _show(reports)
        return
    if output is None:
        render.text(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as exc:
        _show(reports)
        raise ConfigError(f"{output}: cannot be written: {exc.strerror}", _still_had(reports)) from exc
    render.note(f"wrote {output}")
