"""Measure a release on a target: fresh processes run there, raw samples come back, and a report is kept here."""

from __future__ import annotations

import hashlib
import time
from functools import cache
from typing import Any

from toolkit import __version__
from toolkit.agent import agent_sha256
from toolkit.agent.requests import Bench, ListReleases
from toolkit.bench.measure import measure
from toolkit.bundle import Manifest
from toolkit.catalog import ProbeFacts, Workload
from toolkit.catalog.settings import RuntimeSettings
from toolkit.config import data_path
from toolkit.deploy import Prepared, Runtime, prepare
from toolkit.device import Device
from toolkit.errors import AgentError, ConfigError
from toolkit.events import Service, Step
from toolkit.metrics import Predicted, Report
from toolkit.metrics.kept_reports import find_report
from toolkit.metrics.report import Run, save_report
from toolkit.metrics.speed import find_speed, predict

HELD_OUT_TEXT = data_path("heldout.txt")
# The length of the text that prompts are cut from. They only have to be ordinary text: the held-out one serves.
PROMPT_CHARACTERS = 8000


@cache
def held_out_text() -> str:
    """Prose that no shipped model was trained on; its source stands in toolkit/data/README.md."""
    return HELD_OUT_TEXT.read_text(encoding="utf-8")


def bench(
    device: Device,
    bundle_id: str | None,
    workload: Workload,
    *,
    settings: RuntimeSettings | None = None,
    reuse: bool = False,
    prepared: Prepared | None = None,
) -> Service[Report]:
    """Run a workload on an installed release, the active one by default, with the profile's settings by default.

    With `reuse`, a kept report of the same release, target, workload, settings and versions is returned instead of new
    runs. Raises ConfigError when the workload needs more context than the bundle was planned for; AgentError
    when the runtime fails on the device.
    """
    prepared = prepared or (yield from prepare(device))
    probe, runtime = prepared.probe, prepared.runtime
    manifest, bundle_id = installed(device, bundle_id)
    _check_context(manifest, workload)
    settings = (settings or device.profile.runtime.settings).resolved(probe.cores)
    identity: dict[str, Any] = {
        "agent_sha256": agent_sha256(),
        "target": device.target.name,
        "target_key": target_key(device, probe),
        "bundle_id": bundle_id,
        "workload": workload,
        "settings": settings,
        "runtime": list(runtime.installed),
    }
    if reuse and (kept := find_report(**identity)):
        yield Step(f"{device.target.name}: measured on {kept.created_utc}", skipped=True)
        return kept
    predicted = yield from _predict(device, manifest, bundle_id, workload, settings, runtime, identity["target_key"])
    runs = []
    for index in range(workload.runs):
        yield Step(f"{device.target.name}: {manifest.name}, run {index + 1} of {workload.runs}")
        runs.append((yield from _run(device, bundle_id, runtime.lock, workload, settings, index)))
    report = Report(
        **identity,
        created_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        edgephi_version=__version__,
        profile=device.profile.name,
        bundle_name=manifest.name,
        model=manifest.model.id,
        recipe=manifest.recipe["name"],
        bundle_bytes=manifest.size_bytes,
        context_tokens=manifest.context_tokens,
        environment=probe.as_json(),
        quality=manifest.quality,
        predicted=predicted,
        runs=runs,
    )
    save_report(report)
    return report


def _predict(
    device: Device,
    manifest: Manifest,
    bundle_id: str,
    workload: Workload,
    settings: RuntimeSettings,
    runtime: Runtime,
    key: str,
) -> Service[Predicted | None]:
    """The speed that the plan predicts, on a machine that is measured unless it has been; None without a plan."""
    footprint = manifest.plan
    if footprint is None:
        return None
    yield from measure(device, runtime, key)
    speed = find_speed(device.profile, device.target.name, footprint, key=key, without=bundle_id)
    lengths = workload.prompt_tokens, workload.generate_tokens, workload.tokens
    return predict(footprint, speed, *lengths, settings.chunk_size or 0)


def target_key(device: Device, probe: ProbeFacts) -> str:
    """The key of a machine, by which figures of two benchmarks are known to be of the same one: a hash of board, CPU,
    cores, memory, kernel, Python, host and install root.
    """
    facts = [probe.board, probe.arch, probe.cpu, probe.cores, probe.ram_bytes, probe.kernel, probe.python]
    return hashlib.sha256(repr([facts, device.target.host, probe.install_root]).encode()).hexdigest()[:16]


def installed(device: Device, bundle_id: str | None) -> tuple[Manifest, str]:
    """A release's manifest and id, the active one by default. Raises ConfigError when there is none."""
    for entry in device.ask(ListReleases()).releases:
        if entry.release == bundle_id or (bundle_id is None and entry.active):
            return entry.parsed(device.target.name), entry.release
    if bundle_id is None:
        raise ConfigError(
            f"{device.target.name}: nothing is active there", f"edgephi deploy BUNDLE {device.target.name}"
        )
    raise ConfigError(
        f"{device.target.name}: {bundle_id[:12]} isn't installed there",
        f"edgephi releases {device.target.name}",
    )


def _check_context(manifest: Manifest, workload: Workload) -> None:
    if workload.tokens > manifest.context_tokens:
        raise ConfigError(
            f"workload '{workload.name}' needs {workload.tokens} tokens of context, "
            f"{manifest.name} was planned for {manifest.context_tokens}",
            f"choose a shorter workload, or optimize again with --context {workload.tokens}",
        )


def _run(
    device: Device, bundle_id: str, lock: str, workload: Workload, settings: RuntimeSettings, index: int
) -> Service[Run]:
    quality = index == 0 and workload.quality_tokens > 0
    request = Bench(
        release=bundle_id,
        runtime=lock,
        workload=workload,
        settings=settings,
        # The first load reads the disk, the others read the page cache: the report shows both.
        cold=index == 0,
        # The text is long enough not to repeat itself, from which prompt-lookup speculation would profit.
        prompt=held_out_text()[: max(PROMPT_CHARACTERS, workload.prompt_tokens * 8)],
        # Eight characters a token is more than English prose has with any tokenizer of the family.
        quality_text=held_out_text()[: workload.quality_tokens * 8] if quality else None,
    )
    run = yield from device.call(request)
    if len(run.samples) != workload.repetitions or not all(sample.is_timed for sample in run.samples):
        raise AgentError(f"{device.target.name}: the agent measured something else than it was asked", "run it again")
    return run
