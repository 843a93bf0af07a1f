"""`edgephi models`: show the support matrix, look at models, or make one of any Phi-3 shape."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.optimize.matrix import Capability


@click.group(invoke_without_command=True)
@options.as_json
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """Show what works: architecture × provider × recipe; look at models, or synthesize one.

    "tested": the project's tests built a small random model of that architecture, loaded it in the pinned runtime
    and compared its logits with transformers'. "expected": no rule is against it. "impossible": a rule refuses it.
    """
    if ctx.invoked_subcommand is None:
        _show_matrix(as_json=as_json)


def _show_matrix(*, as_json: bool) -> None:
    from dataclasses import asdict

    from toolkit.cli import render
    from toolkit.optimize.matrix import matrix, providers, read_record

    cells = matrix()
    if as_json:
        record = read_record()
        versions = {"tools": record.tools, "runtime": record.runtime}
        render.print_json(versions | {"capabilities": [asdict(cell) for cell in cells]})
        return
    for provider in providers():
        here = [cell for cell in cells if cell.provider == provider]
        reasons = {cell.reason for cell in here}
        if len(reasons) == 1 and here[0].status == "impossible":
            render.line(f"{provider}: impossible: {here[0].reason}; a device that has it runs bundles for its CPU")
            continue
        _draw(provider, here)


def _draw(provider: str, cells: list[Capability]) -> None:
    """A table for one provider, and the reasons below it, numbered as in the table."""
    from toolkit.cli import render

    architectures = list(dict.fromkeys(cell.architecture for cell in cells))
    reasons = list(dict.fromkeys(_general(cell) for cell in cells if cell.status != "tested"))
    rows: dict[str, list[str]] = {}
    for cell in cells:
        number = "" if cell.status == "tested" else f" ({reasons.index(_general(cell)) + 1})"
        rows.setdefault(cell.recipe, [cell.recipe]).append(cell.status + number)
    render.table(["recipe", *architectures], rows.values(), title=f"provider {provider}")
    for index, reason in enumerate(reasons):
        render.line(f"({index + 1}) {reason}")
    if trusting := sorted({cell.architecture for cell in cells if cell.trust_remote_code}):
        render.line(f"{', '.join(trusting)}: with --trust-remote-code only")
    render.line()


def _general(cell: Capability) -> str:
    """A reason without the name of its own row, so that many rows share one note."""
    return cell.reason.removeprefix(f"recipe '{cell.recipe}': ")


@models.command("list")
@options.as_json
def list_(as_json: bool) -> None:
    """List the presets: shapes that `synth` can make."""
    from toolkit.catalog.preset import PRESETS
    from toolkit.cli import render

    if as_json:
        render.print_json(
            [
                {"name": p.name, "hub_id": p.hub_id, "parameters": p.parameters, "layers": p.layers}
                for p in PRESETS.values()
            ]
        )
        return
    rows = [
        [
            preset.name,
            f"{preset.parameters / 1e6:,.1f} M",
            str(preset.layers),
            str(preset.hidden_size),
            str(preset.context_length),
            preset.hub_id or "–",
        ]
        for preset in PRESETS.values()
    ]
    render.table(["preset", "parameters", "layers", "hidden", "context", "on the hub"], rows)


@models.command()
@click.argument("ref", metavar="MODEL")
@options.as_json
def show(ref: str, as_json: bool) -> None:
    """Show a model's shape and check that its files are whole.

    MODEL is a folder in Hugging Face layout, a hub id (downloaded first), or phi3-nano.
    """
    from toolkit.catalog.model import model_files
    from toolkit.cli import render
    from toolkit.optimize import resolve_model

    found = render.follow(resolve_model(ref))
    shape = found.shape
    size_bytes = sum(path.stat().st_size for path in model_files(found))
    if as_json:
        facts = {"id": found.id, "folder": str(found.folder), "revision": found.revision}
        render.print_json(facts | shape.model_dump() | {"parameters": shape.parameters, "size_bytes": size_bytes})
        return
    rows = [
        ["model", found.id],
        ["folder", str(found.folder)],
        ["revision", found.revision or "–"],
        ["parameters", f"{shape.parameters:,}"],
        ["size", render.size(size_bytes)],
        *([name, str(value)] for name, value in shape.model_dump().items()),
    ]
    render.table(["", ""], rows)


@models.command()
@click.argument("name", metavar="PRESET")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="New folder.")
@click.option("--layers", type=click.IntRange(min=1), help="Only the first N layers.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random weights.")
def synth(name: str, out: Path, layers: int | None, seed: int) -> None:
    """Write a model of a published shape with random weights.

    Its size, speed and memory are those of the published model; its answers are noise.
    """
    from toolkit.catalog.preset import preset
    from toolkit.cli import render
    from toolkit.optimize.synth import synthesize

    folder = render.follow(synthesize(preset(name), out, layers=layers, seed=seed))
    render.note(f"{folder}: {name} with random weights")
