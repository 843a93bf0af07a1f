"""Targets: the machines that bundles are pushed to. One TOML file each, without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from toolkit.catalog.address import host_name, user_name
from toolkit.catalog.record import Record
from toolkit.catalog.remote_path import own_folder, python_command
from toolkit.catalog.toml import (
    file_schema,
    find_file,
    find_toml,
    in_working_folder,
    is_path,
    is_shipped,
    parse_table,
    read_toml,
    refuse_twin,
    unknown_name,
)
from toolkit.catalog.trust import admit, demand_trust, own_change
from toolkit.config import shown
from toolkit.errors import ConfigError, UntrustedFile
from toolkit.files import PRIVATE, write_whole

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# The mark by which a command line tells a tag from a name, and the tag that no file has to name.
MARK = "@"
ALL = "all"
# Windows has no Python of that name: there it is looked for under the names that Windows gives it.
DEFAULT_PYTHON = "python3"
_SECRET = re.compile(
    r"pass(word|wd|phrase|code)|^(pass|pwd)$|token|secret|credential|(private|api|access)[_-]?key",
    re.IGNORECASE,
)


def _target_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' is not a name: letters, digits and . _ - only, at most 64")
    if name.endswith(".toml"):
        raise ValueError(f"'{name}' is the name of a file; leave .toml out")
    return name


def can_be_python(path: str) -> bool:
    """Tell if a path on a device may stand in a target's file as its `python`."""
    try:
        python_command(path)
    except ValueError:
        return False
    return True


def _key_file(path: Path) -> Path:
    if "PRIVATE KEY" in str(path):
        raise ValueError("edgephi keeps no secrets in files; write the path of the key file")
    return path


def _profile(name: str) -> str:
    if is_path(name) and not Path(name).expanduser().is_absolute():
        raise ValueError(f"'{name}' means another file in each folder; write a profile's name, or an absolute path")
    return name


def _tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise ValueError(f"'{tag}' is not a tag: letters, digits and . _ - only")
    return tuple(dict.fromkeys(tags))


class Target(Record):
    """One machine. `name` is the file's stem; absent keys are left to OpenSSH's own configuration."""

    name: Annotated[str, AfterValidator(_target_name)] = Field(exclude=True)
    path: Path | None = Field(None, exclude=True)
    schema_version: Literal[1] = 1
    transport: Literal["ssh", "paramiko", "openssh", "local"] = Field(
        "ssh", description="how to reach the machine: paramiko and openssh are SSH with that client alone"
    )
    host: Annotated[str, AfterValidator(host_name)] | None = Field(
        None, description="host name, address or alias of ~/.ssh/config"
    )
    user: Annotated[str, AfterValidator(user_name)] | None = Field(None, min_length=1, description="login name")
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = Field(None, description="port of sshd")
    profile: Annotated[str, AfterValidator(_profile)] = Field(
        min_length=1, description="name of the device class: edgephi profiles list"
    )
    install_root: Annotated[str, AfterValidator(own_folder)] = Field(
        "~/.edgephi", description="folder on the target that edgephi owns"
    )
    python: Annotated[str, AfterValidator(python_command)] = Field(
        DEFAULT_PYTHON, description="Python on the target, 3.9 or newer; on Windows also `py -3.12`"
    )
    os: Literal["posix", "windows"] | None = Field(
        None, description="what sshd runs on; needed only where its greeting doesn't tell that it is Windows"
    )
    identity_file: Annotated[Path, AfterValidator(_key_file)] | None = Field(
        None, description="private key file on this machine; keys in ssh-agent need no mention"
    )
    known_hosts: Path | None = Field(None, description="known_hosts file instead of ~/.ssh/known_hosts")
    tags: Annotated[tuple[str, ...], AfterValidator(_tags)] = Field((), description="groups that the target belongs to")
    allowed_signers: Path | None = Field(
        None,
        description="OpenSSH allowed_signers file, counted from this one: only bundles that one of them has signed",
    )

    @property
    def signers_file(self) -> Path | None:
        """The path of `allowed_signers`; None when the target takes unsigned bundles too."""
        if self.allowed_signers is None:
            return None
        beside = self.path.parent if self.path else Path()
        return beside / self.allowed_signers.expanduser()

    @model_validator(mode="after")
    def _fits_its_transport(self) -> Target:
        if self.transport != "local" and self.host is None:
            raise ValueError("host: missing")
        if self.transport == "local":
            for key in ("host", "user", "port", "identity_file", "known_hosts", "os"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: means nothing with transport 'local'")
        return self

    @property
    def names_python(self) -> bool:
        """True when the user chose the Python there; otherwise another one than the default may be taken."""
        return "python" in self.model_fields_set


def over(target: Target, client: str | None) -> Target:
    """The target over another SSH client (auto, paramiko, openssh) than its file names; a local one stays as it is."""
    if client is None or target.transport == "local":
        return target
    return target.model_copy(update={"transport": "ssh" if client == "auto" else client})


@dataclass(frozen=True)
class BrokenTarget:
    """A target file that can't be used, and why: one bad file must not hide the others."""

    name: str
    path: Path
    error: ConfigError


def parse_target(name: str, table: Mapping[str, Any], where: Path | str) -> Target:
    """A target from a TOML table.

    Raises ConfigError naming `where`, key path and reason; a secret is refused without repeating it.
    """
    source = shown(where) if isinstance(where, Path) else where
    secrets = [f"{source}: {key}: edgephi keeps no secrets in files" for key in _secret_keys(table)]
    if secrets:
        hint = "delete it there; put the key into ssh-agent, or name its file with identity_file"
        raise ConfigError("\n".join(secrets), hint)
    path = where if isinstance(where, Path) else None
    return parse_table(Target, table, where, given={"name": name, "path": path})


def load_target(name: str) -> Target:
    """A target by name.

    Raises ConfigError naming file, key path and reason; UntrustedFile for a key that needs trust in the working folder.
    """
    known = "edgephi targets list shows them; edgephi targets add NAME HOST --profile PROFILE makes one"
    return _load(name, find_file("targets", name, known))


def list_targets() -> list[Target | BrokenTarget]:
    """Every target that a name reaches, in the order of names."""
    return [_load_or_report(name, path) for name, path in find_toml("targets").items()]


def select_targets(words: Sequence[str]) -> list[Target]:
    """The targets that names and `@tags` mean, in the order of the words, each once.

    Raises ConfigError for an unknown name or tag; and, where a tag is asked for, for a target file that can't be
    read: a machine whose tags nobody knows must not be left out in silence. A working folder adds machines to a tag
    only when it is trusted.
    """
    groups = _read_groups() if any(map(is_tag, words)) else {}
    return [load_target(name) for name in expand(words, groups)]


def _read_groups() -> dict[str, list[str]]:
    readable: list[Target] = []
    for target in list_targets():
        if isinstance(target, BrokenTarget):
            if isinstance(target.error, UntrustedFile):
                raise target.error
            hint = "its tags can't be read: mend or delete that file, or name the targets one by one"
            raise ConfigError(target.error.message, hint)
        readable.append(target)
    refuse_strange_members(readable)
    return target_groups(readable)


def refuse_strange_members(targets: Iterable[Target]) -> None:
    """Raise UntrustedFile if one of the targets is a file of a working folder that isn't trusted: it would join the
    machines that a tag, or @all, means.
    """
    for target in targets:
        if target.path is not None and in_working_folder(target.path, "targets"):
            demand_trust(target.path, "tags, and @all")


def is_tag(word: str) -> bool:
    """Tell if a word of a command line means a tag, and not the name of one target."""
    return word.startswith(MARK)


def target_groups(targets: Iterable[Target]) -> dict[str, list[str]]:
    """The names of the targets that `all` and each tag mean, in the order of `targets`.

    Targets that came with edgephi aren't in `all`, as this machine isn't in Ansible's `all` unless it is written down.
    """
    groups: dict[str, list[str]] = {ALL: []}
    for target in targets:
        if target.path is None or not is_shipped(target.path, "targets"):
            groups[ALL].append(target.name)
        for tag in target.tags:
            if tag != ALL:
                groups.setdefault(tag, []).append(target.name)
    return groups


def expand(words: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of targets for words: a name stands for itself, `@tag` for its group. In order, each name once.

    Names aren't looked up. Raises ConfigError for a tag that isn't in `groups`, and for an empty group.
    """
    names: dict[str, None] = {}
    for word in words:
        names |= dict.fromkeys(_members(word, groups) if is_tag(word) else [word])
    return list(names)


def _members(word: str, groups: Mapping[str, Sequence[str]]) -> Sequence[str]:
    known = [MARK + tag for tag in groups]
    if word not in known:
        raise unknown_name("tag", word, known, f"known tags: {', '.join(known)}")
    members = groups[word.removeprefix(MARK)]
    if not members:
        raise ConfigError(f"{word}: no target", "edgephi targets add NAME HOST --profile PROFILE makes one")
    return members


def save_target(target: Target, folder: Path, *, replace: bool = False) -> Path:
    """Write `<folder>/<name>.toml`, whole or not at all, and return its path.

    Raises ConfigError when the file exists and `replace` is false, or when it can't be written.
    """
    path = folder / f"{target.name}.toml"
    if path.exists() and not replace:
        raise ConfigError(f"{shown(path)}: exists already", "--force replaces it")
    refuse_twin("targets", target.name)
    write_whole(path, target_toml(target), mode=PRIVATE)
    return path


def demand_signers(path: Path, file: str) -> None:
    """Write `allowed_signers` into a target's file, which doesn't have it yet; the rest of the file stays as it is."""
    text = path.read_text(encoding="utf-8")
    gap = "\n" if text and not text.endswith("\n") else ""
    # A target's file has no tables, so that its last line is a key of the target.
    with own_change():
        write_whole(path, f'{text}{gap}allowed_signers = "{file}"\n', mode=PRIVATE)


def target_toml(target: Target) -> str:
    """The target as the text of its file, defaults left out."""
    import tomli_w

    table = target.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return tomli_w.dumps({"schema_version": target.schema_version} | table)


def remove_target(name: str) -> Path:
    """Delete the file that `name` reaches and return its path. A target that came with edgephi stays.

    Raises ConfigError when there is none, or when it can't be deleted.
    """
    found = find_toml("targets")
    if name not in found:
        raise unknown_name("target", name, found, "edgephi targets list shows them")
    path = found[name]
    if is_shipped(path, "targets"):
        raise ConfigError(f"target '{name}' came with edgephi and stays: {shown(path)}")
    try:
        with own_change():
            path.unlink()
    except OSError as exc:
        raise ConfigError(f"{shown(path)}: cannot be deleted: {exc.strerror}") from exc
    return path


def target_json_schema() -> dict[str, Any]:
    """JSON Schema of a target file, for editors."""
    schema = file_schema(Target, "edgephi target")
    needs_host = {"if": {"not": {"properties": {"transport": {"const": "local"}}, "required": ["transport"]}}}
    return schema | needs_host | {"then": {"required": ["host"]}}


def _load(name: str, path: Path) -> Target:
    table = read_toml(path)
    target = parse_target(name, table, path)
    admit("targets", path, table)
    return target


def _load_or_report(name: str, path: Path) -> Target | BrokenTarget:
    try:
        return _load(name, path)
    except ConfigError as exc:
        return BrokenTarget(name, path, exc)


def _secret_keys(table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in table.items():
        if _SECRET.search(key):
            yield above + key
        elif isinstance(value, dict):
            yield from _secret_keys(value, f"{above}{key}.")
