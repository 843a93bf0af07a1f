"""Bases of the values that are read from files: typed, and never changed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A value of a file that edgephi defines: a key that it doesn't know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OpenRecord(BaseModel):
    """A value of a file that others write too, or a newer edgephi: keys that it doesn't know are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")
