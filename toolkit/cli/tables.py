"""How reports become rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.cli import render
from toolkit.errors import ConfigError
from toolkit.report import Report, metrics, remarks, to_json
from toolkit.stats import Summary

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


def report_rows(reports: Sequence[Report]) -> list[list[str]]:
    """One row of text a report, in the order of COLUMNS. `load s` is the cold load where there was one."""
    return [_row(report) for report in reports]


def _row(report: Report) -> list[str]:
    found = metrics(report)
    load = found.get("load_cold_s") or found.get("load_warm_s")
    return [
        report.target,
        report.model.rpartition("/")[2],
        report.recipe,
        render.size(report.bundle_bytes),
        _median(load),
        _median(found["ttft_ms"]),
        _median(found["prefill_tps"]),
        _median(found["decode_tps"]),
        f"{found['decode_tps'].spread:.0%}",
        _median(found["itl_p95_ms"]),
        render.size(found["rss_peak_bytes"].median if "rss_peak_bytes" in found else None),
        _median(found.get("ppl")),
    ]


def footnotes(reports: Sequence[Report]) -> list[str]:
    """What the table doesn't show: where and under what it was measured, and which rows to read with care."""
    notes = []
    for report in reports:
        if marks := remarks(report):
            notes.append(f"{report.target}, {report.recipe}: {', '.join(marks)}")
    seen = dict.fromkeys(
        f"{r.target}: {r.environment['board']}, {r.environment['cores']} cores, {r.threads} threads, "
        f"{r.environment['os_name']}, Python {r.environment['python']}, {_runtime(r)}"
        for r in reports
    )
    workloads = dict.fromkeys(
        f"workload {r.workload.name}: {r.workload.prompt_tokens} tokens in, {r.workload.generate_tokens} out, "
        f"{r.workload.runs} processes × {r.workload.repetitions} repetitions; "
        "medians, ± is half the 95 % interval of decode"
        for r in reports
    )
    return [*workloads, *seen, *notes]


def _runtime(report: Report) -> str:
    return ", ".join(
        p for p in report.runtime if p.replace("_", "-").startswith(("onnxruntime-genai", "onnxruntime=="))
    )


def _median(summary: Summary | None) -> str:
    return render.figure(summary.median if summary else None)


def as_markdown(reports: Sequence[Report]) -> str:
    """The table with its footnotes as Markdown."""
    notes = "\n".join(f"- {note}" for note in footnotes(reports))
    return f"{render.markdown_table(COLUMNS, report_rows(reports))}\n\n{notes}\n"


def _show(reports: Sequence[Report]) -> None:
    """The table on stdout. What every row has in common stands above it, so that it fits a terminal."""
    rows = report_rows(reports)
    common = [index for index in (0, 1) if len({row[index] for row in rows}) == 1]
    title = " on ".join(rows[0][index] for index in reversed(common))
    kept = [index for index in range(len(COLUMNS)) if index not in common]
    render.table([COLUMNS[i] for i in kept], [[row[i] for i in kept] for row in rows], title=title or None)
    for note in footnotes(reports):
        render.note(f"  {note}")


def as_payload(reports: Sequence[Report]) -> dict[str, object]:
    """What several reports are as JSON."""
    return {"reports": [to_json(report) for report in reports]}


def write_reports(
    reports: Sequence[Report],
    payload: dict[str, object],
    *,
    as_json: bool,
    markdown: bool,
    output: Path | None,
) -> None:
    """The one way out of reports: a table on stdout, `payload` as JSON, Markdown, or a file whose ending says
    which.
    """
    if output is not None:
        as_json = as_json or output.suffix == ".json"
    if as_json:
        text = json.dumps(payload, indent=1) + "\n"
    elif markdown or output is not None:
        text = as_markdown(reports)
    else:
        _show(reports)
        return
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f"{output}: cannot be written: {exc.strerror}", "the report itself is kept in any case"
        ) from exc
    render.note(f"wrote {output}")
