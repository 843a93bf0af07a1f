"""targets signers: the people whose signatures a target accepts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.catalog.signer import Signer


@click.group()
def signers() -> None:
    """Manage the people whose signatures a target accepts.

    A target without a list of signers takes every bundle. The list is a file in OpenSSH's format, which the target's
    file names as `allowed_signers`; several targets may share it.
    """


@signers.command("list")
@click.argument("target", shell_complete=options.names("targets"))
@options.as_json
def list_(target: str, as_json: bool) -> None:
    """List the people who may sign for a target."""
    from toolkit.catalog import load_target
    from toolkit.catalog.signer import list_signers
    from toolkit.cli import render

    loaded = load_target(target)
    found = list_signers(loaded)
    if as_json:
        render.print_json(
            {"target": target, "demanded": loaded.signers_file is not None, "signers": list(map(_as_json, found))}
        )
        return
    if loaded.signers_file is None:
        render.note(f"{target} takes unsigned bundles; edgephi targets signers add {target} NAME KEY.pub changes that")
        return
    rows = [[one.identities, one.key.key_type, one.key.fingerprint, one.options] for one in found]
    render.table(["signer", "key", "fingerprint", "options"], rows, title=str(loaded.signers_file))
    if not found:
        render.note(f"nobody may sign: {target} takes no bundle")


@signers.command()
@click.argument("target", shell_complete=options.names("targets"))
@click.argument("identity", metavar="NAME")
@click.argument("key", metavar="KEY.pub", type=click.Path(path_type=Path))
@options.as_json
def add(target: str, identity: str, key: Path, as_json: bool) -> None:
    """Let the owner of a key sign for a target.

    NAME is their name in messages, for instance an e-mail address; KEY.pub is their public key. From the first signer
    on the target takes only signed bundles.
    """
    from toolkit.catalog import load_target
    from toolkit.catalog.signer import add_signer
    from toolkit.cli import render

    file, signer = add_signer(load_target(target), identity, key)
    if as_json:
        render.print_json({"target": target, "path": str(file)} | _as_json(signer))
    else:
        render.line(f"{target}: {identity} may sign with {signer.key.fingerprint} ({file})")


@signers.command()
@click.argument("target", shell_complete=options.names("targets"))
@click.argument("reference", metavar="NAME|FINGERPRINT")
@options.as_json
def remove(target: str, reference: str, as_json: bool) -> None:
    """Remove a signer from a target: by name with all keys, or one key by its fingerprint.

    Their signatures no longer count, but installed releases stay. When no signer is left the target takes no bundle at
    all; to take unsigned ones again, delete `allowed_signers` in its file.
    """
    from toolkit.catalog import load_target
    from toolkit.catalog.signer import remove_signer
    from toolkit.cli import render

    file, left = remove_signer(load_target(target), reference)
    if as_json:
        render.print_json({"target": target, "path": str(file), "signers": list(map(_as_json, left))})
        return
    render.line(f"{target}: removed {reference} from {file}")
    if not left:
        render.warn(f"nobody may sign for {target} any more: it takes no bundle")


def _as_json(signer: Signer) -> dict[str, Any]:
    return {
        "identity": signer.identities,
        "key_type": signer.key.key_type,
        "fingerprint": signer.key.fingerprint,
        "options": signer.options,
        "line": signer.line,
    }
