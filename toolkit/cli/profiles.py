"""profiles list, show, validate, schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.catalog import Profile
    from toolkit.catalog.profile import BrokenProfile

STATUS = {
    "hardware": "tested on hardware",
    "emulated": "emulated, untested on hardware",
    "untested": "untested on hardware",
}


@click.group(invoke_without_command=True)
@click.pass_context
def profiles(ctx: click.Context) -> None:
    """List, show and validate device profiles."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@profiles.command("list")
@options.as_json
def list_(as_json: bool = False) -> None:
    """List every profile: those that came with edgephi, and yours."""
    from toolkit.catalog.profile import BrokenProfile, list_profiles
    from toolkit.cli import render

    found = list_profiles()
    for profile in found:
        if isinstance(profile, BrokenProfile):
            render.warn(profile.error.message)
    if as_json:
        render.print_json([_as_json(profile) for profile in found])
        return
    columns = ("profile", "arch", "RAM", "provider", "recipe", "context", "status", "source")
    render.table(columns, map(_row, found))


@profiles.command()
@click.argument("name")
@click.option("--toml", "as_toml", is_flag=True, help="Print it as a profile file, to start your own from.")
@options.as_json
def show(name: str, as_toml: bool, as_json: bool) -> None:
    """Show one profile with everything that it inherits or reads from this machine.

    NAME is a name from `edgephi profiles list` or the path of a TOML file.
    """
    import tomli_w

    from toolkit.catalog import load_profile
    from toolkit.catalog.profile import profile_table
    from toolkit.cli import render

    profile = load_profile(name)
    if as_json:
        render.print_json(_as_json(profile))
    elif as_toml:
        render.toml(tomli_w.dumps(profile_table(profile)))
    else:
        rows = [("file", str(profile.path)), *_flat(profile_table(profile))]
        readable = {"hardware.ram": render.memory(profile.hardware.ram_bytes), "status": STATUS[profile.status]}
        render.table(("key", "value"), [(key, readable.get(key, value)) for key, value in rows], profile.name)


@profiles.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@options.as_json
def validate(paths: tuple[str, ...], as_json: bool) -> None:
    """Check profile files and report everything that is wrong with them.

    PATH is a file, a folder of files or a name; without any, every profile that edgephi finds is checked.
    """
    from toolkit.cli import render
    from toolkit.errors import ConfigError

    errors = {name: _error(name) for name in _files(paths)}
    if as_json:
        render.print_json([{"path": name, "error": error} for name, error in errors.items()])
    else:
        for name, error in errors.items():
            if error is None:
                render.line(f"{name}: ok")
    wrong = [error for error in errors.values() if error is not None]
    if wrong:
        raise ConfigError("\n".join(wrong))


@profiles.command()
def schema() -> None:
    """Print the JSON Schema of profile files, for editors."""
    from toolkit.catalog.profile import profile_json_schema
    from toolkit.cli import render

    render.print_json(profile_json_schema())


def _files(paths: tuple[str, ...]) -> list[str]:
    from toolkit.catalog.toml import search_dirs
    from toolkit.config import shown
    from toolkit.errors import ConfigError

    if not paths:
        folders = search_dirs("profiles")
        return [shown(path) for folder in folders for path in sorted(folder.glob("*.toml"))]
    files: list[str] = []
    for path in paths:
        if Path(path).is_dir():
            inside = [str(file) for file in sorted(Path(path).glob("*.toml"))]
            if not inside:
                raise ConfigError(f"{path}: no *.toml in this folder")
            files += inside
        else:
            files.append(path)
    return files


def _error(name_or_path: str) -> str | None:
    from toolkit.catalog import load_profile
    from toolkit.errors import ConfigError

    try:
        load_profile(name_or_path)
    except ConfigError as exc:
        return exc.message
    return None


def _row(profile: Profile | BrokenProfile) -> list[str]:
    from toolkit.catalog.profile import BrokenProfile
    from toolkit.cli import render

    if isinstance(profile, BrokenProfile):
        return [profile.name, "–", "–", "–", "–", "–", "broken", _source(profile.path)]
    return [
        profile.name,
        profile.hardware.arch,
        render.memory(profile.hardware.ram_bytes),
        profile.runtime.provider,
        profile.defaults.recipe,
        str(profile.defaults.context_tokens),
        STATUS[profile.status],
        _source(profile.path),
    ]


def _as_json(profile: Profile | BrokenProfile) -> dict[str, Any]:
    from toolkit.catalog.profile import BrokenProfile

    known = {"name": profile.name, "path": str(profile.path), "source": _source(profile.path)}
    if isinstance(profile, BrokenProfile):
        return known | {"error": profile.error.message}
    return known | profile.model_dump(mode="json")


def _source(path: Path) -> str:
    from toolkit.catalog.toml import is_shipped

    return "shipped" if is_shipped(path, "profiles") else "user"


def _flat(table: dict[str, Any], above: str = "") -> list[tuple[str, str | tuple[str, ...]]]:
    rows: list[tuple[str, str | tuple[str, ...]]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{above}{key}.")
        else:
            rows.append((above + key, tuple(map(str, value)) if isinstance(value, list) else str(value)))
    return rows
