"""Measure for a second how fast a target reads memory and multiplies. Plans and predictions use it from then on."""

from __future__ import annotations

import base64
import time

from toolkit.agent.requests import Measure
from toolkit.deploy import Runtime
from toolkit.device import Device
from toolkit.errors import ConfigError
from toolkit.events import Service, Step, Warning_
from toolkit.metrics.kernel import INNER, ROWS, matrix_product
from toolkit.metrics.measurement import Measurement, find_measurement, save_measurement


def measure(device: Device, runtime: Runtime, key: str, *, fresh: bool = False) -> Service[Measurement]:
    """Measure the machine that `key` names, unless a measurement with both rates is kept; with `fresh` in any case.

    Where `runtime` isn't installed only memory is measured. Raises AgentError and the subclasses of DeviceError.
    """
    kept = find_measurement(device.target.name, key)
    if kept is not None and kept.kernels_per_s is not None and not fresh:
        return kept
    yield Step(f"{device.target.name}: measure memory and compute")
    request = Measure(
        runtime=runtime.lock,
        kernel=base64.b64encode(matrix_product()).decode(),
        input=[ROWS, INNER],
        settings=device.profile.runtime.settings,
    )
    measured = device.ask(request)
    measurement = Measurement(
        target=device.target.name,
        target_key=key,
        created_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        read_bytes_per_s=measured.read_bytes_per_s,
        kernels_per_s=measured.kernels_per_s,
    )
    try:
        save_measurement(measurement)
    except ConfigError as exc:
        yield not_kept("the measurement", exc)
    return measurement


def not_kept(what: str, exc: ConfigError) -> Warning_:
    """The warning that figures, which the user gets all the same, can't be kept on this machine."""
    return Warning_(f"{what} isn't kept: {exc.message}" + (f" ({exc.hint})" if exc.hint else ""))
