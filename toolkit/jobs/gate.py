"""Deploy through a gate: a bundle becomes active only if it holds its profile's limits on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.agent.requests import Deactivate, ListReleases, RollBack
from toolkit.bench import bench, find_reference, record
from toolkit.bench.evaluate import evaluate
from toolkit.bench.reference import sample_for
from toolkit.bundle import Bundle
from toolkit.catalog import Profile
from toolkit.catalog.profile import Limits
from toolkit.catalog.workload import load_workload
from toolkit.config import shown
from toolkit.deploy import PLAIN, Delivery, deploy
from toolkit.deploy.install import install
from toolkit.device import Device
from toolkit.errors import AgentError, ConfigError, GateFailed
from toolkit.events import Service, Step
from toolkit.metrics import Quality, Report, Summary, metrics
from toolkit.metrics.quality import headline
from toolkit.units import memory_text

WORKLOAD = "quick"


@dataclass(frozen=True)
class LimitCheck:
    """The check of one limit, by its key in the profile. `ok` is None where the figure says nothing about this device.

    `low` and `high` bound the 95 % interval of `measured`, where there is one; `note` explains the check.
    """

    limit: str
    bound: float
    measured: float | None
    low: float | None = None
    high: float | None = None
    ok: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class GateVerdict:
    """The gate's verdict on a bundle. `active` is the release that is active now, None when no release is."""

    bundle: Bundle
    target: str
    checks: tuple[LimitCheck, ...]
    active: str | None
    report: Report

    @property
    def passed(self) -> bool:
        return all(check.ok is not False for check in self.checks)

    def enforce(self) -> None:
        """Raise GateFailed, which names each bound that isn't held, if there is one."""
        failed = ", ".join(_words(check) for check in self.checks if check.ok is False)
        if failed:
            now = f"{self.active[:12]} is active" if self.active else "nothing is active"
            raise GateFailed(
                f"{self.target}: {self.bundle.manifest.name} doesn't hold the limits of its profile: {failed}",
                f"{now} there; change the recipe, or [limits] in the profile",
            )

    def as_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "release": self.bundle.id,
            "passed": self.passed,
            "active": self.active == self.bundle.id,
            "active_release": self.active,
            "checks": [asdict(check) for check in self.checks],
        }


def _words(check: LimitCheck) -> str:
    text = memory_text if check.limit == "max_memory" else "{:.6g}".format
    measured = "unknown" if check.measured is None else text(check.measured)
    return f"{check.limit} is {text(check.bound)}, measured {measured}"


def deploy_gated(bundle: Bundle, device: Device, delivery: Delivery = PLAIN) -> Service[GateVerdict]:
    """Install a bundle, measure it on the device, and activate it only if every limit of the profile is held.

    If one isn't held, the earlier release stays active; a bundle that was active itself is rolled back, or deactivated
    where no release came before it. Raises the errors of `with_gate_figures` and of `deploy`.
    """
    limits = device.profile.limits
    # `install` asks for approval too; asking here keeps figures from being measured for a bundle that it would refuse.
    delivery = delivery.approved(bundle, device.target)
    bundle = yield from with_gate_figures(bundle, device.profile)
    release = yield from install(bundle, device, delivery)
    try:
        report = yield from bench(device, release.bundle_id, load_workload(WORKLOAD), prepared=release.prepared)
    except AgentError:
        # A bundle that can't even be measured there must not be active either.
        yield from withdraw(device, bundle)
        raise
    checks = tuple(check_limits(limits, report, headline(bundle.manifest.quality), release.prepared.probe.arch))
    if all(check.ok is not False for check in checks):
        yield from deploy(bundle, device, delivery, release.prepared)
        active: str | None = bundle.id
    else:
        active = yield from withdraw(device, bundle)
    return GateVerdict(bundle, device.target.name, checks, active, report)


def with_gate_figures(bundle: Bundle, profile: Profile) -> Service[Bundle]:
    """Return the bundle with the quality figures that the profile's limits ask for; measure them if they are missing.

    Raises ConfigError for a profile without limits, or when there is no reference to compare the bundle with.
    """
    limits = profile.limits
    if limits == Limits():
        raise ConfigError(
            f"profile '{profile.name}' has no limits to check",
            f"set max_memory, min_decode_tps, … under [limits] in a profile; {shown(profile.path)} has none",
        )
    known = headline(bundle.manifest.quality)
    lacks_figures = limits.max_perplexity_increase_percent is not None and known is None
    lacks_match = limits.min_token_match is not None and (known is None or known.token_match is None)
    if not (lacks_figures or lacks_match):
        return bundle
    if not bundle.is_here:
        raise ConfigError(
            f"{bundle.manifest.name} has no quality figures, which the profile's limits ask for; its files aren't here",
            "edgephi bundle pull gets them here; then edgephi eval, and push it again",
        )
    try:
        reference = find_reference(bundle.manifest)
    except ConfigError as exc:
        raise ConfigError(
            f"{bundle.manifest.name} has no quality figures, which the profile's limits ask for: {exc.message}",
            f"{exc.hint}; then edgephi eval {bundle.manifest.name}",
        ) from exc
    sample = sample_for(bundle.manifest, reference.manifest)
    return (yield from record(bundle, (yield from evaluate(bundle, reference, sample))))


def check_limits(limits: Limits, report: Report, quality: Quality | None, arch: str) -> Iterator[LimitCheck]:
    """Compare the measured figures with every limit that is set, in the order of the profile's keys."""
    found = metrics(report)
    if limits.max_memory_bytes is not None:
        memory = found.get("rss_peak_bytes")
        peak = memory.high if memory else None
        held = peak is not None and peak <= limits.max_memory_bytes
        note = "" if memory else "the device can't tell"
        yield LimitCheck("max_memory", limits.max_memory_bytes, peak, ok=held, note=note)
    if limits.max_perplexity_increase_percent is not None and quality is not None:
        yield _perplexity(limits.max_perplexity_increase_percent, quality, arch)
    if limits.min_decode_tps is not None:
        yield _speed(limits.min_decode_tps, found["decode_tps"])
    if limits.min_token_match is not None and quality is not None:
        yield _token_match(limits.min_token_match, quality, arch)


def _perplexity(bound: float, quality: Quality, arch: str) -> LimitCheck:
    increase = 100 * quality.ppl_increase
    note = "" if quality.arch == arch else f"measured on {quality.arch}"
    return LimitCheck("max_perplexity_increase_percent", bound, increase, ok=increase <= bound, note=note)


def _speed(bound: float, speed: Summary) -> LimitCheck:
    note = "the bound lies within the 95 % interval" if speed.low < bound <= speed.high else ""
    return LimitCheck("min_decode_tps", bound, speed.median, speed.low, speed.high, ok=speed.median >= bound, note=note)


def _token_match(bound: float, quality: Quality, arch: str) -> LimitCheck:
    match, error = quality.token_match, quality.token_match_error
    if not quality.match_comparable or quality.arch != arch:
        # Kernels of another architecture end near-ties of logits the other way.
        return LimitCheck(
            "min_token_match", bound, match, note=f"not comparable: measured on {quality.arch}, not on {arch}"
        )
    if match is None:
        return LimitCheck("min_token_match", bound, None, ok=False, note="the context is too short to measure it")
    low, high = (match - 1.96 * error, match + 1.96 * error) if error is not None else (None, None)
    return LimitCheck("min_token_match", bound, match, low, high, ok=match >= bound)


def withdraw(device: Device, bundle: Bundle) -> Service[str | None]:
    """Make sure that a bundle isn't active, under any of its ids; return the release that is active, None for none."""
    while True:
        state = device.ask(ListReleases())
        active = next((entry for entry in state.releases if entry.active), None)
        if active is None:
            return None
        if active.parsed(device.target.name).identity != bundle.manifest.identity:
            return active.release
        installed = {entry.release for entry in state.releases}
        if any(entry.release in installed for entry in state.pointer.previous):
            back = device.ask(RollBack()).release
            yield Step(f"{device.target.name}: rolled back to {back[:12]}")
        else:
            device.ask(Deactivate())
            yield Step(f"{device.target.name}: deactivated; there is no earlier release")
