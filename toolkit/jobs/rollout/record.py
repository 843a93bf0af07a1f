"""The plan of a rollout's waves, and the record of the outcome on each device."""

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

from pydantic import AfterValidator, Field

from toolkit.bundle import Bundle, canonical_json
from toolkit.bundle.registry import BlobSource
from toolkit.catalog.record import Record, read_record
from toolkit.config import data_dir, shown
from toolkit.errors import ConfigError, DeviceError, GateFailed
from toolkit.files import locked, write_whole
from toolkit.untrusted import reason

_COUNT = re.compile(r"[0-9]{1,9}")
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%")

State = Literal["pending", "done", "failed"]
# The state that a failed device was left in, beside the one before; unknown when it didn't answer any more.
Restored = Literal["unchanged", "rolled back", "deactivated", "unknown"]


def canary_count(canary: str, total: int) -> int:
    """The number of devices that `2` or `10%` means, of `total`; a share above zero is at least one device.

    Raises ValueError for other texts.
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
    """The options of a rollout. `canary_count` reads `canary`; `offline` and the fields below are `deploy`'s."""

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
    """The targets that are worked on at once; waves are numbered from 1."""

    number: int
    targets: tuple[str, ...]
    canary: bool


class DeviceRecord(Record):
    """The outcome on one device: the figures of its last try.

    `active` is the release that was active at the end of that try. None means no release only if `restored` is set and
    isn't unknown; else it means that nobody knows.
    """

    target: str
    wave: int = Field(ge=1)
    canary: bool
    state: State = "pending"
    seconds: float = Field(0.0, ge=0, lt=2**33)
    sent_bytes: int = Field(0, ge=0, lt=2**60)
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
        """The rollout with that device's record in the place of its earlier one."""
        devices = tuple(device if old.target == device.target else old for old in self.devices)
        return self.model_copy(update={"devices": devices})


def plan_waves(targets: Sequence[str], options: RolloutOptions) -> tuple[Wave, ...]:
    """Plan the waves: first the canaries, then the rest, in the order given; at most `parallel` targets in each."""
    first = canary_count(options.canary, len(targets))
    chunks = [
        (tuple(part[start : start + options.parallel]), canary)
        for part, canary in ((targets[:first], True), (targets[first:], False))
        for start in range(0, len(part), options.parallel)
    ]
    return tuple(Wave(number, chunk, canary) for number, (chunk, canary) in enumerate(chunks, 1))


def stop_reason(tried: Iterable[DeviceRecord], max_failures: int) -> str | None:
    """The reason that no further wave may start after these devices; None when one may."""
    failed = [device for device in tried if device.state == "failed"]
    canaries = [device.target for device in failed if device.canary]
    if canaries:
        return f"canary failed: {', '.join(canaries)}"
    if len(failed) > max_failures:
        return f"failed devices: {len(failed)}, allowed: {max_failures}"
    return None


def rollout_exit_code(devices: Iterable[DeviceRecord]) -> int:
    """The exit code: 0 for no failure; a gate's if one failed; else the one that all failures share, or a device's."""
    codes = {device.exit_code for device in devices if device.exit_code is not None}
    if GateFailed.exit_code in codes:
        return GateFailed.exit_code
    return codes.pop() if len(codes) == 1 else DeviceError.exit_code if codes else 0


def new_rollout(bundle: Bundle, targets: Sequence[str], options: RolloutOptions) -> Rollout:
    """The record of a rollout before its first device. Its id is a hash of the bundle's id, targets and options."""
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
    """The folder of the records."""
    return data_dir() / "rollouts"


def recall(rollout: Rollout) -> Rollout:
    """The kept record of the same rollout, or this one when there is none."""
    path = _path(rollout.id)
    return read_rollout(path) if path.is_file() else rollout


def save_rollout(rollout: Rollout) -> Rollout:
    """Keep a record, whole or not at all; return it with the new time in it. Raises ConfigError when that fails."""
    rollout = rollout.model_copy(update={"updated_utc": _now()})
    write_whole(_path(rollout.id), rollout.model_dump_json(indent=1))
    return rollout


def read_rollout(path: Path) -> Rollout:
    """Read a record of any version. Raises ConfigError when it isn't one."""
    try:
        return read_record(Rollout, path)
    except (OSError, ValueError) as exc:
        hint = "a newer edgephi may have written it; --fresh starts that rollout anew"
        raise ConfigError(f"{shown(path)}: not a rollout: {reason(exc)}", hint) from exc


def list_rollouts() -> list[Rollout]:
    """Every kept record, the newest first. Unreadable ones are left out; `find_rollout` raises their error."""
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
    """Claim a rollout for this process alone. Raises ConfigError when another process is at work on it."""
    with locked(rollouts_dir() / f"{rollout.id}.lock", "runs the same rollout"):
        yield


def _path(rollout_id: str) -> Path:
    return rollouts_dir() / f"{rollout_id}.json"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
