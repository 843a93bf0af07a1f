"""Bases of the values that are read from files: typed, and never changed."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit.untrusted import LARGEST_JSON_BYTES, read_json_file

M = TypeVar("M", bound=BaseModel)


class Record(BaseModel):
    """A value of a file that edgephi defines: a key that it doesn't know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OpenRecord(BaseModel):
    """A value of a file that others write too, or a newer edgephi: keys that it doesn't know are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def read_record(model: type[M], path: Path, most_bytes: int = LARGEST_JSON_BYTES) -> M:
    """The value in a JSON file. Raises OSError and ValueError, whose `reason` is one line: it names the first key that
    is wrong.
    """
    return validated(model, read_json_file(path, most_bytes, controls=True))


def validated(model: type[M], value: object) -> M:
    """The typed value of parsed JSON. Raises ValueError that names the first key that is wrong, in one line."""
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])[:200]
        raise ValueError(f"{key}: {first['msg']}" if key else first["msg"]) from exc
