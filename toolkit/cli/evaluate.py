"""eval."""

from __future__ import annotations

import math
from pathlib import Path

import click

from toolkit.cli import options


@click.command("eval")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--reference", help="Bundle to compare with. Default: the fp32 bundle of the same weights.")
@click.option(
    "--text",
    "text_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="UTF-8 text. Default: the held-out text that ships with phi3-nano.",
)
@click.option("--tokens", type=click.IntRange(16), default=8192, show_default=True, help="How much of it.")
@click.option("--window", type=click.IntRange(16, 8192), default=512, show_default=True, help="Tokens read at once.")
@options.as_json
def evaluate(
    bundles: tuple[str, ...], reference: str | None, text_file: Path | None, tokens: int, window: int, as_json: bool
) -> None:
    """Compare a bundle's quality with the model it came from.

    Perplexity, KL divergence from the reference and top-1 agreement, measured on this machine in the pinned runtime,
    with standard errors over windows of text.
    """
    from toolkit.bundle import find_bundle
    from toolkit.cli import render
    from toolkit.evaluate import evaluate as evaluate_service
    from toolkit.evaluate import find_reference

    found = [find_bundle(name) for name in bundles]
    chosen = find_bundle(reference) if reference else None
    results = [
        render.follow(
            evaluate_service(bundle, chosen or find_reference(bundle), text_file, tokens=tokens, window_tokens=window)
        )
        for bundle in found
    ]
    if as_json:
        render.print_json([_without_nan(result.as_json()) for result in results])
        return
    columns = ["bundle", "ppl", "±", "fp32\nppl", "increase", "KLD\nmean", "±", "KLD\np99", "top-1"]
    rows = [
        [
            r.bundle_name,
            render.figure(r.ppl, 4),
            render.figure(r.ppl_error, 2),
            render.figure(r.reference_ppl, 4),
            f"{r.ppl_increase:+.2%}",
            f"{r.kld_mean:.5f}",
            f"{r.kld_mean_error:.5f}",
            f"{r.kld_p99:.4f}",
            f"{r.top1:.1%}",
        ]
        for r in results
    ]
    render.table(columns, rows)
    first = results[0]
    render.note(
        f"  {first.text}: {first.tokens} predicted tokens in windows of {first.window_tokens}; ± is one standard error"
    )


def _without_nan(values: dict[str, object]) -> dict[str, object]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
