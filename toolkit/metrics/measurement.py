"""Measurements: the speeds that a device reached in a second of measuring, kept by target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from toolkit.catalog.record import OpenRecord, read_record
from toolkit.config import data_dir
from toolkit.files import write_whole
from toolkit.metrics.footprint import block_cost
from toolkit.metrics.kernel import BLOCK, OPERATIONS
from toolkit.untrusted import LARGEST_TEXT_BYTES


class Measurement(OpenRecord):
    """The speeds that a device reached in a second of measuring. Kept by target, the newest for each machine."""

    target: str
    target_key: str
    created_utc: str
    read_bytes_per_s: Annotated[float, Field(gt=0, lt=1e15)]
    kernels_per_s: Annotated[float, Field(gt=0, lt=1e12)] | None

    @property
    def ops_per_s(self) -> float | None:
        return self.kernels_per_s and self.kernels_per_s * OPERATIONS * block_cost(BLOCK)


def measurements_dir() -> Path:
    return data_dir() / "speeds"


def find_measurement(target: str, key: str | None = None) -> Measurement | None:
    """The newest measurement of a target; of one machine only when its `key` is given."""
    found = []
    for path in measurements_dir().glob(f"{target}-{key or '*'}.json"):
        try:
            measurement = read_record(Measurement, path, LARGEST_TEXT_BYTES)
        except (OSError, ValueError):
            continue
        # A target's name may be the beginning of another's.
        if measurement.target == target:
            found.append(measurement)
    return max(found, key=lambda measurement: measurement.created_utc, default=None)


def save_measurement(measurement: Measurement) -> None:
    path = measurements_dir() / f"{measurement.target}-{measurement.target_key}.json"
    write_whole(path, measurement.model_dump_json(indent=1))
