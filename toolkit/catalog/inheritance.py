"""A profile's file with those that it extends: found, read, and merged into one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.catalog.toml import find_toml, in_working_folder, is_path, read_toml, search_dirs
from toolkit.config import shown, suggestion
from toolkit.errors import ConfigError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Chain:
    """A file and what it extends, nearest first, each with its own table."""

    links: tuple[tuple[Path, dict[str, Any]], ...]

    def merged(self) -> dict[str, Any]:
        """One table of all, in which the nearest has the say."""
        merged: dict[str, Any] = {}
        for _, table in reversed(self.links):
            # What an ancestor was tried on says nothing about this one.
            inherited = {key: value for key, value in merged.items() if key not in ("status", "extends")}
            merged = _merge(inherited, table)
        return merged

    def origin(self, key_path: Sequence[str]) -> Path:
        """The nearest file that has the key; the first one for what none has."""
        for path, table in self.links:
            value: Any = table
            for key in key_path:
                value = value.get(key) if isinstance(value, dict) else None
            if key_path and value is not None:
                return path
        return self.links[0][0]


def read_chain(path: Path) -> Chain:
    """The chain that begins with a file.

    Raises ConfigError for what can't be read, has another schema version, extends nothing known or goes in a circle.
    """
    chain = [(path, _read(path))]
    while "extends" in chain[-1][1]:
        parent = _find_parent(chain)
        names = [file.stem for file, _ in chain] + [parent.stem]
        if any(parent.samefile(file) for file, _ in chain):
            raise ConfigError(f"{shown(path)}: extends: goes in a circle: {' → '.join(names)}")
        chain.append((parent, _read(parent)))
    return Chain(tuple(chain))


def _read(path: Path) -> dict[str, Any]:
    table = read_toml(path)
    # Checked in every file before merging: what another version means by its keys isn't known here.
    version = table.get("schema_version")
    if version is None:
        hint = f"add the line: schema_version = {SCHEMA_VERSION}"
        raise ConfigError(f"{shown(path)}: schema_version: missing", hint)
    if version != SCHEMA_VERSION or isinstance(version, bool):
        hint = "a newer edgephi may read the file"
        message = f"{shown(path)}: schema_version: this edgephi reads version {SCHEMA_VERSION}, not {version!r}"
        raise ConfigError(message, hint)
    return table


def _find_parent(chain: Sequence[tuple[Path, dict[str, Any]]]) -> Path:
    """The file that the last of the chain extends: its neighbour first, so that a folder's profiles agree.

    A file that extends its own name means the one it hides. A file that isn't the working folder's extends one of those
    only if no other has the name: what a profile of the user's own means doesn't change with the folder.
    """
    path, table = chain[-1]
    name = table["extends"]
    if not isinstance(name, str) or is_path(name):
        raise ConfigError(f"{shown(path)}: extends: must be the name of a profile, not {name!r}")
    seen = [file.resolve() for file, _ in chain]
    folders = search_dirs("profiles")
    if not in_working_folder(path, "profiles"):
        folders.sort(key=lambda folder: in_working_folder(folder / path.name, "profiles"))
    for folder in [path.parent, *folders]:
        candidate = folder / f"{name}.toml"
        hides_itself = name == path.stem and candidate.resolve() in seen
        if candidate.is_file() and not hides_itself:
            return candidate
    if name == path.stem:
        return path
    known = {*find_toml("profiles"), *(file.stem for file in path.parent.glob("*.toml"))}
    message = f"{shown(path)}: extends: unknown profile '{name}'{suggestion(name, known)}"
    raise ConfigError(message, "edgephi profiles list shows them")


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
