"""Rollouts: one bundle goes onto several targets, in waves, and a record keeps the outcome."""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.jobs.rollout.record import (
        DeviceRecord as DeviceRecord,
        Rollout as Rollout,
        RolloutOptions as RolloutOptions,
    )
    from toolkit.jobs.rollout.run import roll_out as roll_out

__getattr__ = lazily(__name__, record="DeviceRecord Rollout RolloutOptions", run="roll_out")
