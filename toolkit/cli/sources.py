"""The bundle that a command names, and the registry that devices pull its files from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.bundle import Bundle
    from toolkit.bundle.registry import BlobSource


def find_subject(word: str) -> tuple[Bundle | None, str | None]:
    """Find the thing that a command works on: (bundle, None), or (None, target) for the active release of a target.

    Raises ConfigError for a word that is neither, or both.
    """
    from toolkit.bundle import find_bundle, list_bundles
    from toolkit.bundle.store import matching
    from toolkit.catalog.toml import find_toml
    from toolkit.config import is_path, suggestion
    from toolkit.errors import ConfigError

    if is_path(word):
        return find_bundle(word), None
    stored, targets = list_bundles(), find_toml("targets")
    matches = matching(word, stored)
    if word in targets and matches:
        hint = f"name the bundle by its id, {matches[0].id[:12]}; for the target, give its file another name"
        raise ConfigError(f"'{word}' is a target and a bundle", hint)
    if word in targets:
        return None, word
    if not matches:
        near = suggestion(word, {*targets, *(bundle.manifest.name for bundle in stored)})
        folder = f"; the folder of that name is ./{word}" if Path(word).is_dir() else ""
        hint = f"edgephi targets list and edgephi bundle list show them{folder}"
        raise ConfigError(f"'{word}' is neither a target nor a bundle{near}", hint)
    return find_bundle(word), None


def find_with_source(bundle: str, pull: options.Pull) -> tuple[Bundle, BlobSource | None]:
    """Find the named bundle, and the source that devices pull its files from; None where they are pushed."""
    from toolkit.bundle import find_bundle
    from toolkit.bundle.registry import BlobSource, parse_place
    from toolkit.bundle.registry.layout import is_place, parse_repository, with_mirrors
    from toolkit.bundle.registry.transfer import remote_bundle
    from toolkit.cli import render

    if is_place(bundle):
        if pull.pull_from is not None:
            raise click.UsageError("--from is for a bundle on this machine; add other places with --mirror")
        place = parse_place(bundle)
    elif pull.pull_from is not None:
        place = parse_repository(pull.pull_from)
    elif pull.mirrors or pull.plain_http:
        raise click.UsageError("--mirror and --plain-http go with a bundle in a registry, or with --from")
    else:
        return find_bundle(bundle), None
    source = with_mirrors(BlobSource(place.host, place.repository, plain_http=pull.plain_http), pull.mirrors)
    if pull.pull_from is not None:
        return find_bundle(bundle), source
    return render.follow(remote_bundle(place, plain_http=pull.plain_http)), source
