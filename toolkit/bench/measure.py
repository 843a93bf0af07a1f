"""Measure for a second how fast a target reads memory and multiplies. Plans and predictions use it from then on."""

from __future__ import annotations

import base64
import time

from toolkit.agent.answers import Measured
from toolkit.agent.requests import Measure
from toolkit.deploy import Runtime
from toolkit.device import Device
from toolkit.errors import ConfigError
from toolkit.events import Service, Step, Warning_
from toolkit.metrics.kernel import INNER, ROWS, matrix_product
from toolkit.metrics.measurement import Measurement, find_measurement, save_measurement
from toolkit.metrics.speed import contradicted

# An idle board's own programs take 1 to 3 %; one busy program takes a quarter of the smallest.
MOST_DISTURBANCE = 0.10


def measure(device: Device, runtime: Runtime, key: str, *, fresh: bool = False) -> Service[Measurement]:
    """Measure the machine that `key` names, unless a measurement with both rates is kept; with `fresh` in any case, and
    where reports contradict the one that is kept.

    A measurement that other programs disturbed is taken twice, and isn't kept when they go on. Where `runtime` isn't
    installed only memory is measured. Raises AgentError and the subclasses of DeviceError.
    """
    name, kept = device.target.name, find_measurement(device.target.name, key)
    doubted = kept is not None and contradicted(device.profile, kept)
    if kept is not None and kept.kernels_per_s is not None and not fresh and not doubted:
        return kept
    why = ", for its reports contradict the last measurement" if doubted else ""
    yield Step(f"{name}: measure memory and compute{why}")
    request = Measure(
        runtime=runtime.lock,
        kernel=base64.b64encode(matrix_product()).decode(),
        input=[ROWS, INNER],
        settings=device.profile.runtime.settings,
    )
    measured = device.ask(request)
    if _disturbed(measured):
        yield Step(f"{name}: other programs were busy there: measure again")
        measured = min(measured, device.ask(request), key=lambda one: one.others_share or 0.0)
    measurement = Measurement(
        target=device.target.name,
        target_key=key,
        created_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        read_bytes_per_s=measured.read_bytes_per_s,
        kernels_per_s=measured.kernels_per_s,
    )
    if _disturbed(measured):
        yield Warning_(
            f"{name}: other programs took {measured.others_share:.0%} of its processors' time while it was measured: "
            "the speed isn't kept, and the next bench there measures it again"
        )
        return measurement
    if doubted and contradicted(device.profile, measurement):
        measurement = measurement.model_copy(update={"confirmed": True})
    try:
        save_measurement(measurement)
    except ConfigError as exc:
        yield not_kept("the measurement", exc)
    return measurement


def _disturbed(measured: Measured) -> bool:
    return (measured.others_share or 0.0) > MOST_DISTURBANCE


def not_kept(what: str, exc: ConfigError) -> Warning_:
    """The warning that figures, which the user gets all the same, can't be kept on this machine."""
    return Warning_(f"{what} isn't kept: {exc.message}" + (f" ({exc.hint})" if exc.hint else ""))
