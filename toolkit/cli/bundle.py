"""`edgephi bundle`: the built bundles, their signatures, and the registries that keep them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.catalog.python import MINORS
from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.bundle import Bundle
    from toolkit.bundle.signatures import Signature
    from toolkit.metrics import Quality


@click.group()
def bundle() -> None:
    """List, show, sign, verify, push and pull built bundles."""


@bundle.command("list")
@options.as_json
def list_(as_json: bool) -> None:
    """List the bundles built on this machine."""
    from toolkit.bundle import list_bundles
    from toolkit.cli import render

    bundles = list_bundles()
    if as_json:
        render.print_json([_summary(entry) for entry in bundles])
        return
    if not bundles:
        render.note("nothing is built yet; edgephi optimize builds a bundle")
        return
    columns = ["bundle", "id", "model", "provider", "context", "size"]
    rows = [
        [
            entry.manifest.name,
            entry.id[:12],
            entry.manifest.model.id,
            entry.manifest.provider,
            str(entry.manifest.context_tokens),
            render.size(entry.manifest.size_bytes),
        ]
        for entry in bundles
    ]
    render.table(columns, rows)


@bundle.command()
@click.argument("ref", metavar="BUNDLE")
@options.as_json
def show(ref: str, as_json: bool) -> None:
    """Show a bundle's manifest.

    BUNDLE is a folder, a name, or 6 or more characters of an id.
    """
    from toolkit.bundle import find_bundle
    from toolkit.cli import render

    found = find_bundle(ref)
    manifest = found.manifest
    if as_json:
        render.print_json(_summary(found) | {"manifest": manifest.model_dump(mode="json")})
        return
    model = manifest.model
    facts = [
        ["bundle", manifest.name],
        ["id", found.id],
        ["folder", str(found.path)],
        ["model", model.id + (f" @ {model.revision}" if model.revision else "")],
        ["parameters", f"{model.parameters:,}"],
        ["recipe", ", ".join(f"{key} {value}" for key, value in manifest.recipe.items())],
        ["provider", manifest.provider],
        ["context", f"{manifest.context_tokens} tokens"],
        ["size", render.size(manifest.size_bytes)],
        ["built with", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())],
        *([f"quality, {text}", _figures(quality)] for text, quality in sorted(manifest.quality.items())),
    ]
    render.table(["", ""], facts)
    files = [[artifact.path, render.size(artifact.size_bytes), artifact.sha256[:16]] for artifact in manifest.artifacts]
    render.table(["file", "size", "sha256"], files)


@bundle.command()
@click.argument("ref", metavar="BUNDLE")
@click.option("--key", type=click.Path(path_type=Path), help="SSH key to sign with.  [default: yours in ~/.ssh]")
@options.as_json
def sign(ref: str, key: Path | None, as_json: bool) -> None:
    """Sign a bundle with an SSH key, after checking its files against its manifest.

    BUNDLE is a folder, a name, or 6 or more characters of an id. The key is the file of a private key, or of a
    public key whose private half ssh-agent holds. The bundle keeps its id; several people may sign it.
    """
    from toolkit.bundle import find_bundle
    from toolkit.bundle.signatures import sign as sign_service
    from toolkit.cli import render

    found = find_bundle(ref)
    made = render.follow(sign_service(found, key))
    if as_json:
        render.print_json(_summary(found) | {"signature": _signature(made)})
    else:
        render.line(f"{found.manifest.name} ({found.id[:12]}): signed with {made.key}")


@bundle.command()
@click.argument("ref", metavar="BUNDLE")
@click.option(
    "--target", shell_complete=options.names("targets"), help="Check that one of this target's signers has signed it."
)
@options.as_json
def verify(ref: str, target: str | None, as_json: bool) -> None:
    """Check every file of a bundle against its manifest, and check its signatures.

    BUNDLE is a folder, a name, or 6 or more characters of an id. Exits with 6 when something is wrong with the files,
    with 9 when a signature is wrong or, with --target, when the target wouldn't take the bundle.
    """
    from toolkit.bundle import find_bundle, verify_bundle
    from toolkit.bundle.signatures import check_signed, examine, read_signatures, refuse_wrong
    from toolkit.catalog import load_target
    from toolkit.cli import render

    found = find_bundle(ref)
    chosen = load_target(target) if target else None
    render.follow(verify_bundle(found))
    signers = chosen.signers_file if chosen else None
    signatures = examine(found.manifest_bytes, read_signatures(found), signers)
    if as_json:
        render.print_json(_summary(found) | {"verified": True, "signatures": list(map(_signature, signatures))})
    else:
        render.note(f"{found.manifest.name} {found.id[:12]}: all {len(found.manifest.artifacts)} files are whole")
        for words in list(map(_words, signatures)) or ["it isn't signed"]:
            render.note(words)
    if chosen:
        check_signed(found, chosen)
    else:
        refuse_wrong(found, signatures)


def _words(signature: Signature) -> str:
    by = f" by {signature.signer}" if signature.signer else ""
    return f"{signature.name}: " + (signature.refused or f"a right signature{by}, made with {signature.key}")


@bundle.command()
@click.argument("ref", metavar="BUNDLE")
@click.argument("reference", metavar="oci://HOST/REPOSITORY[:TAG]")
@options.plain_http
@options.as_json
def push(ref: str, reference: str, plain_http: bool, as_json: bool) -> None:
    """Put a bundle into a registry, as an artifact that ORAS understands.

    BUNDLE is a folder, a name, or 6 or more characters of an id. Content that the repository has isn't sent again. The
    tag is `latest` where none is given. Credentials are those of `docker login`, `podman login` or `oras login`.
    """
    from toolkit.bundle import find_bundle
    from toolkit.bundle.registry import parse_place
    from toolkit.bundle.registry.transfer import push_bundle
    from toolkit.cli import render

    found, to = find_bundle(ref), parse_place(reference)
    published = render.follow(push_bundle(found, to, plain_http=plain_http))
    if as_json:
        where = {"reference": str(to), "digest": published.reference.digest, "sent_bytes": published.sent_bytes}
        render.print_json(_summary(found) | where)
    else:
        render.line(str(published.reference))


@bundle.command()
@click.argument("reference", metavar="oci://HOST/REPOSITORY[:TAG|@DIGEST]")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="New folder for the bundle, instead of the store that `edgephi bundle list` shows.",
)
@options.plain_http
@options.as_json
def pull(reference: str, into: Path | None, plain_http: bool, as_json: bool) -> None:
    """Get a bundle from a registry, and check every file against its hash as it arrives.

    After an interruption the same command goes on. Credentials are those of `docker login`, `podman login` or
    `oras login`.
    """
    from toolkit.bundle.registry import parse_place
    from toolkit.bundle.registry.transfer import pull_bundle
    from toolkit.cli import render

    found = render.follow(pull_bundle(parse_place(reference), into=into, plain_http=plain_http))
    if as_json:
        render.print_json(_summary(found))
    else:
        render.line(f"{found.manifest.name} {found.id} {found.path}")


@bundle.command()
@click.argument("ref", metavar="BUNDLE")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--profile",
    "-p",
    "profiles",
    multiple=True,
    shell_complete=options.names("profiles"),
    help="Class of the devices. Repeatable.",
)
@click.option(
    "--for",
    "targets",
    multiple=True,
    metavar="TARGET",
    shell_complete=options.several_targets,
    help="Targets whose classes to add, by name or @tag; each must accept the bundle. Repeatable.",
)
@click.option(
    "--python",
    "pythons",
    multiple=True,
    type=click.Choice(MINORS),
    help="Python version of the devices. Repeatable.  [default: all that suit]",
)
@click.option("--with-wheels", is_flag=True, help="Add the runtimes' wheels, for devices without a package index.")
@options.source
@options.gathered(pull=options.Pull)
def export(
    ref: str,
    folder: Path,
    profiles: tuple[str, ...],
    targets: tuple[str, ...],
    pythons: tuple[str, ...],
    with_wheels: bool,
    pull: options.Pull,
) -> None:
    """Write a kit: a folder from which other tools bring a bundle to devices.

    The kit holds the bundle's files, the agent and every request that the agent needs; the Ansible role
    edgephi_bundle reads it. An existing kit is replaced.

    BUNDLE is a folder, a name, or 6 or more characters of an id. With --from, or when BUNDLE is
    oci://HOST/REPOSITORY[:TAG], the kit has no files of the bundle: the devices pull them from a registry that asks for
    no password.
    """
    from toolkit.bundle.signatures import approve_all
    from toolkit.catalog import load_profile
    from toolkit.catalog.target import select_targets
    from toolkit.cli import render
    from toolkit.cli.sources import find_with_source
    from toolkit.deploy.kit import export_kit

    if not (profiles or targets):
        raise click.UsageError("say what devices it is for: --for @TAG, or --profile NAME")
    chosen = select_targets(targets)
    names = list(dict.fromkeys([*profiles, *(target.profile for target in chosen)]))
    loaded = [load_profile(name) for name in names]
    found, source = find_with_source(ref, pull)
    approve_all(found, chosen)
    render.follow(export_kit(found, loaded, folder, pythons=pythons, wheels=with_wheels, source=source))
    render.note(f"{folder}: {found.manifest.name} ({found.id[:12]}) for {', '.join(names)}")


def _figures(quality: Quality) -> str:
    from toolkit.cli import render

    return (
        f"perplexity {render.figure(quality.ppl, 4)} ({quality.ppl_increase:+.2%}), KLD {quality.kld_mean:.4f}, "
        f"top-1 {quality.top1:.1%}, token match {render.percent(quality.token_match)}; "
        f"{quality.tokens} tokens on {quality.arch}"
    )


def _signature(signature: Signature) -> dict[str, Any]:
    return {
        "file": signature.name,
        "key": signature.key,
        "signer": signature.signer,
        "valid": signature.refused is None,
        "reason": signature.refused,
    }


def _summary(entry: Bundle) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "id": entry.id,
        "name": manifest.name,
        "path": str(entry.path),
        "model": manifest.model.id,
        "recipe": manifest.recipe["name"],
        "provider": manifest.provider,
        "context_tokens": manifest.context_tokens,
        "size_bytes": manifest.size_bytes,
    }
