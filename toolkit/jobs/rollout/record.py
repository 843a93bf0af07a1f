"""Rollouts: which devices get a bundle in which wave, and the record of what came of each."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from toolkit.bundle import Bundle, canonical_json
from toolkit.bundle.registry import BlobSource
from toolkit.catalog.record import Record
from toolkit.config import data_dir, shown
from toolkit.errors import ConfigError, DeviceError, GateFailed
from toolkit.files import locked, write_whole

_COUNT = re.compile(r"[0-9]{1,9}")
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%")

State = Literal["pending", "done", "failed"]
# What a device that failed was left with, beside the state before; unknown when it didn't answer any more.
Restored = Literal["unchanged", "rolled back", "deactivated", "unknown"]


def canary_count(canary: str, total: int) -> int:
    """How many of `total` devices `2` or `10%` mean; a share above nothing is at least one device.

    Raises ValueError when it is neither.
    """
    if _COUNT.fullmatch(canary):
        return min(int(canary), total)
    share = _SHARE.fullmatch(canary)
    if share is None or Fraction(share[1]) > 100:
        raise ValueError(f"'{canary}' is neither a number of devices nor a percentage like 10%")
    return ceil(total * Fraction(share[1]) / 100)


def _canary(text: str) -> str:
    canary_count(text, 0)
    return text


class RolloutOptions(Record):
    """How a bundle is rolled out. `canary` as `canary_count` reads it; the rest of the fields are `deploy`'s."""

    parallel: int = Field(8, ge=1)
    canary: Annotated[str, AfterValidator(_canary)] = "1"
    max_failures: int = Field(0, ge=0)
    gate: bool = False
    offline: bool | None = None
    wheels: Path | None = None
    force: bool = False
    source: BlobSource | None = None


@dataclass(frozen=True)
class Wave:
    """Targets that are worked on at once, numbered from 1."""

    number: int
    targets: tuple[str, ...]
    canary: bool


class DeviceRecord(Record):
    """What came of one device: the figures of its last try.

    `active` is the release that was active at the end of a try, as far as `restored` or `done` says that it is known.
    """

    target: str
    wave: int = Field(ge=1)
    canary: bool
    state: State = "pending"
    seconds: float = 0.0
    sent_bytes: int = 0
    error: str | None = None
    hint: str | None = None
    exit_code: int | None = None
    restored: Restored | None = None
    active: str | None = None


class Rollout(Record):
    """The record of a rollout. `stopped` says why later waves weren't started."""

    record_version: Literal[1] = 1
    id: str
    bundle_id: str
    bundle_name: str
    created_utc: str
    updated_utc: str
    options: RolloutOptions
    devices: tuple[DeviceRecord, ...]
    stopped: str | None = None

    def in_state(self, state: State) -> list[DeviceRecord]:
        return [device for device in self.devices if device.state == state]

    def with_device(self, device: DeviceRecord) -> Rollout:
        """The same with that device's record in the place of its earlier one."""
        devices = tuple(device if old.target == device.target else old for old in self.devices)
        return self.model_copy(update={"devices": devices})


def plan_waves(targets: Sequence[str], options: RolloutOptions) -> tuple[Wave, ...]:
    """First the canaries, then the rest, in the order given; never more than `parallel` at once."""
    first = canary_count(options.canary, len(targets))
    chunks = [
        (tuple(part[start : start + options.parallel]), canary)
        for part, canary in ((targets[:first], True), (targets[first:], False))
        for start in range(0, len(part), options.parallel)
    ]
    return tuple(Wave(number, chunk, canary) for number, (chunk, canary) in enumerate(chunks, 1))


def stop_reason(tried: Iterable[DeviceRecord], max_failures: int) -> str | None:
    """Why no further wave may start after these devices, None when one may."""
    failed = [device for device in tried if device.state == "failed"]
    canaries = [device.target for device in failed if device.canary]
    if canaries:
        return f"canary failed: {', '.join(canaries)}"
    if len(failed) > max_failures:
        return f"failed devices: {len(failed)}, allowed: {max_failures}"
    return None


def rollout_exit_code(devices: Iterable[DeviceRecord]) -> int:
    """0 when none failed; a gate's when a gate was among them; the one that all failures share, else a device's."""
    codes = {device.exit_code for device in devices if device.exit_code is not None}
    if GateFailed.exit_code in codes:
        return GateFailed.exit_code
    return codes.pop() if len(codes) == 1 else DeviceError.exit_code if codes else 0


def new_rollout(bundle: Bundle, targets: Sequence[str], options: RolloutOptions) -> Rollout:
    """The record of a rollout before its first device. What makes two rollouts one and the same makes its id."""
    identity = canonical_json([bundle.id, list(targets), options.model_dump(mode="json")])
    now = _now()
    return Rollout(
        id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        bundle_id=bundle.id,
        bundle_name=bundle.manifest.name,
        created_utc=now,
        updated_utc=now,
        options=options,
        devices=tuple(
            DeviceRecord(target=target, wave=wave.number, canary=wave.canary)
            for wave in plan_waves(targets, options)
            for target in wave.targets
        ),
    )


def rollouts_dir() -> Path:
    """Where the records are kept."""
    return data_dir() / "rollouts"


def recall(rollout: Rollout) -> Rollout:
    """The kept record of the same rollout, or this one when there is none."""
    path = _path(rollout.id)
    return read_rollout(path) if path.is_file() else rollout


def save_rollout(rollout: Rollout) -> Rollout:
    """Keep a record, whole or not at all; returns it with the time in it. Raises ConfigError when that fails."""
    rollout = rollout.model_copy(update={"updated_utc": _now()})
    write_whole(_path(rollout.id), rollout.model_dump_json(indent=1))
    return rollout


def read_rollout(path: Path) -> Rollout:
    """Read a record of any version. Raises ConfigError when it isn't one."""
    try:
        return Rollout.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as exc:
        hint = "a newer edgephi may have written it; --fresh starts that rollout anew"
        raise ConfigError(f"{shown(path)}: not a rollout: {str(exc).splitlines()[0]}", hint) from exc


def list_rollouts() -> list[Rollout]:
    """Every kept record, the newest first; unreadable ones are left out, `find_rollout` says why."""
    found = []
    for path in rollouts_dir().glob("*.json"):
        try:
            found.append(read_rollout(path))
        except ConfigError:
            continue
    return sorted(found, key=lambda rollout: (rollout.created_utc, rollout.id), reverse=True)


def find_rollout(reference: str) -> Rollout:
    """A record by its id, or by the first characters of it. Raises ConfigError unless exactly one fits."""
    paths = [path for path in sorted(rollouts_dir().glob("*.json")) if path.stem.startswith(reference)]
    if len(paths) != 1:
        count = "no rollout" if not paths else f"{len(paths)} rollouts"
        raise ConfigError(f"{count} called '{reference}'", "edgephi rollouts list shows them")
    return read_rollout(paths[0])


@contextmanager
def claim(rollout: Rollout) -> Iterator[None]:
    """Have a rollout to oneself. Raises ConfigError when another process is at work on it."""
    with locked(rollouts_dir() / f"{rollout.id}.lock", "runs the same rollout"):
        yield


def _path(rollout_id: str) -> Path:
    return rollouts_dir() / f"{rollout_id}.json"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
