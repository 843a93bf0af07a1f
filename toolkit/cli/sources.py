"""The bundle that a command names, and the registry that devices pull its files from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.bundle import Bundle
    from toolkit.bundle.registry import BlobSource


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
