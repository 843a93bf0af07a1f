"""Which bundle is meant, and where devices get its files from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from toolkit.bundle.registry.layout import BlobSource
    from toolkit.bundle.store import Bundle


def find_with_source(
    bundle: str, pull_from: str | None, mirrors: tuple[str, ...], *, plain_http: bool
) -> tuple[Bundle, BlobSource | None]:
    """The bundle that is meant, and where devices are to pull its files from, None where they are pushed."""
    from toolkit.bundle.registry.layout import BlobSource, is_place, parse_place, parse_repository, with_mirrors
    from toolkit.bundle.registry.transfer import remote_bundle
    from toolkit.bundle.store import find_bundle
    from toolkit.cli import render

    if is_place(bundle):
        if pull_from is not None:
            raise click.UsageError("--from is for a bundle on this machine; add other places with --mirror")
        place = parse_place(bundle)
    elif pull_from is not None:
        place = parse_repository(pull_from)
    elif mirrors or plain_http:
        raise click.UsageError("--mirror and --plain-http go with a bundle in a registry, or with --from")
    else:
        return find_bundle(bundle), None
    source = with_mirrors(BlobSource(place.host, place.repository, plain_http=plain_http), mirrors)
    if pull_from is not None:
        return find_bundle(bundle), source
    return render.follow(remote_bundle(place, plain_http=plain_http)), source
