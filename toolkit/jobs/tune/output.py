"""The two files that a search ends with: the recipe, and a profile that uses it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from toolkit.catalog import Profile, Recipe
from toolkit.catalog.inheritance import SCHEMA_VERSION
from toolkit.catalog.settings import RuntimeSettings
from toolkit.config import shown
from toolkit.errors import ConfigError
from toolkit.files import put_file
from toolkit.untrusted import visible


def write_files(
    folder: Path,
    recipe: Recipe,
    profile: Profile,
    settings: RuntimeSettings,
    *,
    context_tokens: int | None,
    calibration: Path | None = None,
    notes: Sequence[str],
) -> tuple[Path, Path]:
    """Write `recipes/<recipe>.toml` and `profiles/<profile>-tuned.toml` below `folder`, `notes` above each as comments.

    The layout is that of a project's and of the user's own folder, so that edgephi finds the files by name there.
    `calibration` is the text that a calibrated recipe was built with instead of its own. Raises ConfigError when the
    folder can't be written.
    """
    recipe_file = folder / "recipes" / f"{recipe.name}.toml"
    profile_file = folder / "profiles" / f"{profile.name}-tuned.toml"
    overlay = {
        "schema_version": SCHEMA_VERSION,
        "extends": profile.name,
        "description": f"{profile.description}; tuned by measurement",
        # This profile was measured on a device of the class just now, so it has the status of the class.
        "status": profile.status,
        "runtime": settings.model_dump(exclude_none=True),
        "defaults": {"recipe": recipe.name} | ({"context": context_tokens} if context_tokens else {}),
    }
    try:
        _write(recipe_file, _recipe_table(recipe, recipe_file.parent, calibration), notes)
        _write(profile_file, overlay, notes)
    except OSError as exc:
        raise ConfigError(f"{shown(folder)}: cannot be written: {exc.strerror}", "name another folder: --out") from exc
    return recipe_file, profile_file


def _recipe_table(recipe: Recipe, folder: Path, calibration: Path | None) -> dict[str, Any]:
    table = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if recipe.calibration is not None:
        # Defaults are written too: a recipe without this table has no calibration.
        table["calibration"] = recipe.calibration.model_dump(mode="json", exclude_none=True)
        own = recipe.path.parent / recipe.calibration.file if recipe.calibration.file else None
        if text := calibration or own:
            table["calibration"]["file"] = Path(os.path.relpath(text, folder)).as_posix()
    return table


def _write(path: Path, table: dict[str, Any], notes: Sequence[str]) -> None:
    lines = "".join(f"# {visible(line)}\n" for note in notes for line in note.split("\n"))
    put_file(path, lines + tomli_w.dumps(table))
