"""`edgephi model`: look at models, or make one of any Phi-3 shape."""

from __future__ import annotations

from pathlib import Path

import click

from toolkit.cli import options


@click.group()
def model() -> None:
    """Look at models, or synthesize one of any Phi-3 shape."""


@model.command("list")
@options.as_json
def list_(as_json: bool) -> None:
    """List the presets: shapes that `synth` can make."""
    from toolkit.cli import render
    from toolkit.presets import PRESETS

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


@model.command()
@click.argument("ref", metavar="MODEL")
@options.as_json
def show(ref: str, as_json: bool) -> None:
    """Show a model's shape and check that its files are whole.

    MODEL is a folder in Hugging Face layout, a hub id (downloaded first), or phi3-nano.
    """
    from toolkit.cli import render
    from toolkit.models import model_files
    from toolkit.optimizer.hub import resolve_model

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


@model.command()
@click.argument("name", metavar="PRESET")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="New folder.")
@click.option("--layers", type=click.IntRange(min=1), help="Only the first N layers.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random weights.")
def synth(name: str, out: Path, layers: int | None, seed: int) -> None:
    """Write a model of a published shape with random weights.

    Its size, speed and memory are the real ones; its words are not.
    """
    from toolkit.cli import render
    from toolkit.optimizer.synth import synthesize
    from toolkit.presets import preset

    folder = render.follow(synthesize(preset(name), out, layers=layers, seed=seed))
    render.note(f"{folder}: {name} with random weights")
