"""TOML files become typed values: the search for the files, and the messages about mistakes in them."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from toolkit.config import config_dir, shipped_dir, shown, suggestion
from toolkit.errors import ConfigError
from toolkit.untrusted import name_problem, read_text_file, reason

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound="BaseModel")
_DEEPEST = 32
# Tells the file that a key path came from, where several were merged.
Origin = Callable[[Sequence[str]], Path]


def search_dirs(name: str) -> list[Path]:
    """Folders that may hold `name` files, strongest first: `./<name>`, the user's, the shipped ones."""
    folders = [Path.cwd() / name, config_dir() / name, shipped_dir(name)]
    seen: dict[Path, Path] = {}
    for folder in folders:
        seen.setdefault(folder.resolve(), folder)
    return list(seen.values())


def find_toml(name: str) -> dict[str, Path]:
    """All TOML files of a kind by stem, the strongest folder winning."""
    found: dict[str, Path] = {}
    for folder in search_dirs(name):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def is_shipped(path: Path, kind: str) -> bool:
    """Tell if a file of `kind` came with edgephi, rather than from the user."""
    return path.resolve().parent == shipped_dir(kind).resolve()


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str) -> ConfigError:
    """The error for a profile, target, recipe or workload that doesn't exist."""
    return ConfigError(f"unknown {kind} '{name}'{suggestion(name, known)}", hint)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse one TOML file.

    Raises ConfigError with file, line and column when it can't be read or isn't TOML.
    """
    try:
        text = read_text_file(path)
    except OSError as exc:
        raise ConfigError(f"{shown(path)}: cannot be read: {reason(exc)}") from exc
    except ValueError as exc:
        raise ConfigError(f"{shown(path)}: {exc}", "save the file as UTF-8") from exc
    try:
        table = tomllib.loads(text)
        _check(table, ())
        return table
    except RecursionError as exc:
        raise ConfigError(f"{shown(path)}: nested too deep") from exc
    except tomllib.TOMLDecodeError as exc:
        hint = "strings need quotes; tables are [name]"
        raise ConfigError(f"{shown(path)}: not valid TOML: {exc}", hint) from exc
    except ValueError as exc:
        raise ConfigError(f"{shown(path)}: {exc}") from exc


def _check(value: Any, above: tuple[str, ...]) -> None:
    """Raise ValueError, with the key, for what no file may mean: numbers without an end, NUL, endless nesting."""
    if len(above) > _DEEPEST:
        raise ValueError("nested too deep")
    problem = None
    if isinstance(value, float) and not math.isfinite(value):
        problem = f"must be a finite number, not {value}"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        problem = "must be a whole number of at most 64 bits"
    elif isinstance(value, str) and "\0" in value:
        problem = "must not have a NUL character"
    if problem is not None:
        raise ValueError(f"{'.'.join(above)}: {problem}")
    if isinstance(value, dict):
        for key, item in value.items():
            _check(item, (*above, key))
    elif isinstance(value, list):
        for item in value:
            _check(item, (*above, "[]"))


def parse_table(
    model: type[M],
    table: Mapping[str, Any],
    where: Path | str | Origin,
    given: Mapping[str, object] | None = None,
) -> M:
    """Validate a TOML table against a pydantic model.

    `given` holds fields that the caller knows and the file may not set (its name, its path); the model marks
    them with `exclude=True`. Raises ConfigError that names file, key path and, for a misspelt key, the likely
    one.
    """
    from pydantic import ValidationError

    given = given or {}
    reserved = [f"{_file(where, [key])}: {key}: unknown key" for key in given if key in table]
    if reserved:
        raise ConfigError("\n".join(reserved))
    if "name" in given and (problem := name_problem(str(given["name"]))):
        raise ConfigError(f"{_file(where, [])}: nothing can have that name: {problem}", "rename the file")
    try:
        return model.model_validate({**table, **given})
    except ValidationError as exc:
        raise ConfigError("\n".join(_explain(model, exc, where))) from exc


def file_schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    """JSON Schema of the files that `parse_table` reads into `model`, for editors.

    Fields that a file may not set are left out, and so is null, which TOML doesn't have.
    """
    schema: dict[str, Any] = _without_null(model.model_json_schema(by_alias=True))
    for name, field in model.model_fields.items():
        if field.exclude:
            del schema["properties"][name]
    schema["required"] = [key for key in schema.get("required", []) if key in schema["properties"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": title}


def _without_null(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_null(item) for item in node if item != {"type": "null"}]
    if not isinstance(node, dict):
        return node
    # A field's own title only repeats its key.
    kept = {key: value for key, value in node.items() if value is not None and not _is_title(key, value)}
    cleaned = {key: _without_null(value) for key, value in kept.items()}
    if len(cleaned.get("anyOf", [])) == 1:
        cleaned |= cleaned.pop("anyOf")[0]
    return cleaned


def _is_title(key: str, value: object) -> bool:
    return key == "title" and isinstance(value, str)


def _file(where: Path | str | Origin, key_path: Sequence[str]) -> str:
    if isinstance(where, str):
        return where
    return shown(where if isinstance(where, Path) else where(key_path))


def _explain(model: type[BaseModel], exc: ValidationError, where: Path | str | Origin) -> Iterator[str]:
    for error in exc.errors():
        path = [str(part) for part in error["loc"]]
        prefix = ": ".join([_file(where, path), *([".".join(path)] if path else [])]) + ": "
        if error["type"] == "extra_forbidden":
            yield f"{prefix}unknown key{suggestion(path[-1], _known_keys(model, path[:-1]))}"
        elif error["type"] == "missing":
            yield f"{prefix}missing"
        elif error["type"] == "literal_error":
            expected = error["ctx"]["expected"]
            near = suggestion(str(error["input"]), re.findall("'([^']*)'", expected))
            yield f"{prefix}must be {expected}, not {_as_toml(error['input'])}{near}"
        elif error["type"] == "model_type":
            yield f"{prefix}must be a table, not {_as_toml(error['input'])}"
        elif error["type"] in ("too_short", "string_too_short"):
            yield f"{prefix}must not be empty"
        elif error["msg"].startswith("Input should be"):
            wanted = error["msg"].removeprefix("Input should be").replace("tuple", "list")
            yield f"{prefix}must be{wanted}, not {_as_toml(error['input'])}"
        else:
            yield prefix + error["msg"].removeprefix("Value error, ")


def _as_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float, str)):
        return repr(value)
    if isinstance(value, list):
        return "a list"
    return "a table" if isinstance(value, dict) else "a value of another kind"


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that a file may have below `path`, spelt as the file spells them."""
    from pydantic import BaseModel

    for part in path:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        kind = fields[part].annotation if part in fields else None
        if not isinstance(kind, type) or not issubclass(kind, BaseModel):
            return []
        model = kind
    return [field.alias or name for name, field in model.model_fields.items() if not field.exclude]
