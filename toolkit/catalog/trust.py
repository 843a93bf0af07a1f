"""Files of the working folder: those that they hide, the keys in them that need the user's trust, and the memory of it.

Such files may have come with a repository that somebody else wrote. Trust holds for a folder's path and the content of
all these files; docs/security.md has the table of keys.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from toolkit.catalog.record import OpenRecord
from toolkit.catalog.toml import hidden_by, in_working_folder, is_copy, is_path, read_toml
from toolkit.config import data_dir, shown
from toolkit.errors import ConfigError, UntrustedFile
from toolkit.events import Warning_, announce
from toolkit.files import PRIVATE, write_whole

KINDS = ("targets", "profiles", "recipes", "workloads", "boards")
HINT = "read its files, then type: edgephi trust (or say --trust-folder)"
# Keys that make no program or package run, loosen no check and name no file; every other one needs trust.
FREE_KEYS: Mapping[str, frozenset[str]] = {
    "targets": frozenset(["schema_version", "host", "user", "port", "profile", "os", "tags"]),
    "profiles": frozenset(
        [
            *("schema_version", "description", "status", "extends", "hardware", "defaults"),
            *(f"runtime.{key}" for key in ("provider", "threads", "chunk_size", "ngram_size", "max_draft_tokens")),
        ]
    ),
}
# Of the kinds that have no such key: the files that a gate measures by, which nothing may take the place of.
_MEASURED_BY = {"workloads": ("quick",), "recipes": ("fp32",)}
# The keys of a target that are looked at first where it differs from the one that it hides.
_FIRST = ("allowed_signers", "known_hosts", "python", "install_root", "identity_file", "transport", "host")
State = Literal["trusted", "new", "changed", "gone"]


@dataclass(frozen=True)
class FolderFile:
    """A file of the working folder: the one that it hides, the keys that need trust, and whether it has that."""

    path: Path
    hides: Path | None
    keys: tuple[str, ...]
    state: State


class _Memory(OpenRecord):
    folder: str
    files: dict[str, str]


def admit(kind: str, path: Path, table: Mapping[str, Any]) -> None:
    """Let a file be used, as all are that aren't the working folder's; announce the file that one of those hides.

    Raises UntrustedFile for a key that needs trust, in a folder without it.
    """
    if not in_working_folder(path, kind) or is_copy(path, kind):
        return
    hidden = hidden_by(path, kind)
    if hidden is not None:
        announce(Warning_(f"{shown(path)} is read instead of {shown(hidden)}: files of the working folder come first"))
    keys = guarded_keys(kind, path, table, hidden)
    if keys:
        demand_trust(path, keys[0])


def demand_trust(path: Path, key: str) -> None:
    """Raise UntrustedFile that names the key, unless the working folder is trusted."""
    remembered = _recall()
    if remembered is None:
        raise UntrustedFile(f"{shown(path)}: {key}: needs your trust in this folder, {Path.cwd()}", HINT)
    if others := changes(remembered):
        said = ", ".join(f"{name} ({state})" for name, state in others.items())
        message = f"{shown(path)}: {key}: needs your trust in this folder, which has changed since you gave it: {said}"
        raise UntrustedFile(message, HINT)


def guarded_keys(kind: str, path: Path, table: Mapping[str, Any], hidden: Path | None) -> tuple[str, ...]:
    """The keys of a file of the working folder that need trust: those that it has, or that it takes from a hidden one.

    `hidden` is the file that it hides.
    """
    if kind in _MEASURED_BY:
        return ("its name, which gates measure by",) if hidden is not None and path.stem in _MEASURED_BY[kind] else ()
    if kind not in FREE_KEYS:
        return ()
    found = [key for key in _dotted(table) if key not in FREE_KEYS[kind] and key.split(".")[0] not in FREE_KEYS[kind]]
    if kind == "profiles" and hidden is not None and table.get("extends") != path.stem:
        # Everything that the hidden profile says would be lost: packages, limits.
        found.insert(0, "extends")
    if kind == "targets":
        if is_path(str(table.get("profile"))):
            found.append("profile")
        found = [*_differing(table, hidden), *found] if hidden is not None else found
    return tuple(dict.fromkeys(found))


def _differing(table: Mapping[str, Any], hidden: Path) -> list[str]:
    try:
        other = read_toml(hidden)
    except ConfigError:
        return ["host"]
    keys = dict.fromkeys([*_FIRST, *table, *other])
    return [key for key in keys if key != "schema_version" and table.get(key) != other.get(key)]


def _dotted(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from (f"{key}.{below}" for below in value)
        else:
            yield key


def examine() -> list[FolderFile]:
    """Every file of the working folder that trust is about, and those that are gone since it was given."""
    remembered = _recall()
    states = changes(remembered) if remembered is not None else None
    found = []
    for name, path in _files().items():
        state: State = "new" if states is None else states.get(name, "trusted")
        kind = path.parent.name
        hides: Path | None = None
        keys: tuple[str, ...] = ()
        if path.suffix == ".toml" and kind in KINDS and in_working_folder(path, kind):
            hides = hidden_by(path, kind)
            with suppress(ConfigError):
                keys = guarded_keys(kind, path, read_toml(path), hides)
        found.append(FolderFile(path, hides, keys, state))
    gone = [name for name, state in (states or {}).items() if state == "gone"]
    return [*found, *(FolderFile(Path.cwd() / name, None, (), "gone") for name in gone)]


def trust_folder() -> list[str]:
    """Remember the working folder's files as they are now, and return their paths from there.

    Raises ConfigError when the memory can't be written.
    """
    memory = _Memory(folder=str(Path.cwd().resolve()), files=_hashes())
    if memory.files:
        write_whole(_memory_file(), json.dumps(memory.model_dump(), indent=1) + "\n", mode=PRIVATE)
    return list(memory.files)


def forget_folder() -> bool:
    """Take the trust in the working folder back; false when there was none."""
    file = _memory_file()
    found = file.is_file()
    file.unlink(missing_ok=True)
    return found


def is_trusted() -> bool:
    """Tell if the working folder is trusted with the files that it has now."""
    remembered = _recall()
    return remembered is not None and not changes(remembered)


@contextmanager
def own_change() -> Iterator[None]:
    """Keep a trusted folder trusted over a block in which the user's own command changes its files."""
    held = is_trusted()
    yield
    if held:
        trust_folder()


def changes(remembered: Mapping[str, str]) -> dict[str, State]:
    """The files that differ from those remembered, by path: new, changed or gone."""
    now = _hashes()
    states: dict[str, State] = {}
    for name in sorted({*now, *remembered}):
        if now.get(name) != remembered.get(name):
            states[name] = "gone" if name not in now else "new" if name not in remembered else "changed"
    return states


def _recall() -> dict[str, str] | None:
    """The hashes of the trusted files, by path; None for a folder that isn't trusted."""
    try:
        memory = _Memory.model_validate_json(_memory_file().read_bytes())
    except (OSError, ValidationError):
        return None
    return memory.files if memory.folder == str(Path.cwd().resolve()) else None


def _memory_file() -> Path:
    name = hashlib.sha256(os.fsencode(Path.cwd().resolve())).hexdigest()[:32]
    return data_dir() / "trusted" / f"{name}.json"


def _hashes() -> dict[str, str]:
    found = {}
    for name, path in _files().items():
        try:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as exc:
            raise ConfigError(f"{shown(path)}: cannot be read: {exc.strerror}") from exc
    return found


def _files() -> dict[str, Path]:
    """The files that trust is about, by path from the working folder: TOML files, and all that targets lie beside and
    name. Copies of shipped files aren't among them.
    """
    found: list[Path] = []
    for kind in KINDS:
        for path in sorted((Path.cwd() / kind).glob("*" if kind == "targets" else "*.toml")):
            if path.is_file() and in_working_folder(path, kind) and not is_copy(path, kind):
                found.append(path)
    found += [named for path in found if path.parent.name == "targets" for named in _named(path)]
    return {os.path.relpath(path, Path.cwd()).replace(os.sep, "/"): path for path in found}


def _named(target: Path) -> Iterator[Path]:
    """The lists of signers and host keys that a target's file names, except those at places of the user's own."""
    if target.suffix != ".toml":
        return
    try:
        table = read_toml(target)
    except ConfigError:
        return
    for key, beside in (("allowed_signers", target.parent), ("known_hosts", Path.cwd())):
        text = table.get(key)
        if isinstance(text, str) and not text.startswith("~"):
            file = Path(os.path.normpath(beside / text))
            mine = Path(text).is_absolute() and not file.is_relative_to(Path.cwd())
            if file.is_file() and not mine:
                yield file
