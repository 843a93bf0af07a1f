"""eval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.bench import EvalText, Evaluation
    from toolkit.bundle import Bundle

COLUMNS = (
    "bundle", "ppl", "±", "fp32\nppl", "increase", "KLD\nmean", "±", "KLD\np99", "top-1", "±", "token\nmatch", "±",
)  # fmt: skip


@dataclass(frozen=True)
class _TextOptions:
    """The text that quality is measured on: the tokens to read, the tokens of a window, the prompts to continue."""

    text_file: Path | None
    tokens: int
    window: int
    prompts: int

    def read(self) -> EvalText:
        from toolkit.bench import read_eval_text

        return read_eval_text(self.text_file, tokens=self.tokens, window_tokens=self.window, prompts=self.prompts)


@click.command("eval")
@click.argument("subjects", nargs=-1, required=True, metavar="BUNDLE|TARGET...")
@click.option(
    "--on",
    "target",
    shell_complete=options.names("targets"),
    help="Evaluate the bundles on this target, with its own kernels.",
)
@click.option("--reference", help="Bundle to compare with. Default: the fp32 bundle of the same weights.")
@click.option(
    "--text",
    "text_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="UTF-8 text. Default: the held-out text that ships with phi3-nano.",
)
@click.option("--tokens", type=click.IntRange(16, 1_000_000), default=8192, show_default=True, help="Tokens to read.")
@click.option("--window", type=click.IntRange(16, 8192), default=512, show_default=True, help="Tokens read at once.")
@click.option(
    "--prompts",
    type=click.IntRange(0, 1000),
    default=16,
    show_default=True,
    help="Prompts to continue greedily for the token match; 0 leaves it out.",
)
@click.option(
    "--record/--no-record",
    default=True,
    show_default=True,
    help="Keep figures taken on this machine in the bundle's manifest, which gives the bundle a new id.",
)
@click.option(
    "--tasks", help="Run lm-eval tasks instead, separated by commas; each a name, or the path of a task's YAML file."
)
@click.option("--limit", type=click.IntRange(1), help="Documents of each task. Default: all.")
@options.unlocked_packages
@options.trust_folder
@options.as_json
@options.gathered(text=_TextOptions)
def evaluate(
    subjects: tuple[str, ...],
    target: str | None,
    reference: str | None,
    text: _TextOptions,
    record: bool,
    tasks: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Compare a bundle's quality with the model it came from.

    Measures perplexity, KL divergence from the reference, top-1 agreement and greedy token match, in the pinned
    runtime, with standard errors. A bundle is evaluated on this machine, or on the target that --on names. A target's
    name means its active release, evaluated there. The reference always runs on this machine, so that it needn't fit on
    the device.
    """
    from toolkit.bundle import find_bundle
    from toolkit.cli import render

    if tasks is not None:
        idle = ("text_file", "tokens", "window", "prompts", "reference", "record")
        options.say_idle(idle, "with --tasks: the tasks bring their own texts, and their scores aren't kept")
        _run_tasks(subjects, target, tasks.split(","), limit, as_json=as_json)
        return
    options.say_idle(("limit",), "without --tasks")
    sample = text.read()
    chosen = find_bundle(reference) if reference else None
    results = []
    places = _places(subjects, target)
    if record and any(place for _, place in places):
        options.say_idle(("record",), "on a target: only figures taken on this machine are kept")
    for bundle, place in places:
        if bundle is not None and place is None:
            results.append(_here(bundle, chosen, sample, record=record))
        else:
            results.append(_there(bundle, str(place), chosen, sample))
    if as_json:
        render.print_json([result.as_json() for result in results])
    else:
        _show(results)


def _places(subjects: tuple[str, ...], target: str | None) -> list[tuple[Bundle | None, str | None]]:
    """Each subject and its place: (bundle, None) is this machine, (None, target) the target's active release."""
    from toolkit.bundle import find_bundle
    from toolkit.cli.sources import find_subject

    if target is not None:
        return [(find_bundle(name), target) for name in subjects]
    return [find_subject(name) for name in subjects]


def _here(bundle: Bundle, reference: Bundle | None, sample: EvalText, *, record: bool) -> Evaluation:
    from toolkit.bench import record as record_figures
    from toolkit.bench.evaluate import evaluate as evaluate_service
    from toolkit.bench.reference import is_reference
    from toolkit.cli import render
    from toolkit.errors import ConfigError

    result = render.follow(evaluate_service(bundle, reference, sample))
    if not record:
        return result
    if reference is not None and not is_reference(reference.manifest, bundle.manifest):
        render.note(f"not recorded: {reference.manifest.name} isn't the fp32 original of {bundle.manifest.name}")
        return result
    try:
        recorded = render.follow(record_figures(bundle, result))
    except ConfigError as exc:
        render.warn(f"{exc.message} ({exc.hint})")
        return result
    return result.model_copy(update={"bundle_id": recorded.id})


def _there(bundle: Bundle | None, target: str, reference: Bundle | None, sample: EvalText) -> Evaluation:
    from toolkit.bench.evaluate import evaluate_on
    from toolkit.cli import render
    from toolkit.deploy.install import install
    from toolkit.device import connect

    with connect(target, render.prompt_secret()) as device:
        release = render.follow(install(bundle, device)) if bundle is not None else None
        prepared = release.prepared if release else None
        return render.follow(evaluate_on(device, bundle.id if bundle else None, reference, sample, prepared))


def _show(results: list[Evaluation]) -> None:
    from toolkit.cli import render

    render.table(COLUMNS, [_row(result) for result in results])
    first = results[0]
    render.note(
        f"  {first.text}: {first.tokens} predicted tokens in windows of {first.window_tokens}; ± is one standard error"
    )
    if any(result.stepwise for result in results):
        render.note("  read token by token where a bundle computes the last token's logits only")
    matched = next((result for result in results if result.token_match is not None), None)
    if matched:
        render.note(
            f"  token match: {matched.match_prompts} prompts continued greedily for {matched.match_tokens} tokens, "
            "the share before the first difference"
        )
    for result in results:
        if result.token_match is not None and not result.match_comparable:
            render.note(
                f"  {result.bundle_name} on {result.target}: the token match is informative only; the reference's "
                f"tokens come from {result.reference_arch}, and {result.arch} has other kernels"
            )


def _row(result: Evaluation) -> list[str]:
    from toolkit.cli import render

    return [
        result.bundle_name,
        render.figure(result.ppl, 4),
        render.figure(result.ppl_error, 2),
        render.figure(result.reference_ppl, 4),
        f"{result.ppl_increase:+.2%}",
        f"{result.kld_mean:.5f}",
        _decimals(result.kld_mean_error, 5),
        f"{result.kld_p99:.4f}",
        f"{result.top1:.1%}",
        render.percent(result.top1_error),
        render.percent(result.token_match),
        render.percent(result.token_match_error),
    ]


def _decimals(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _run_tasks(
    subjects: tuple[str, ...], target: str | None, tasks: list[str], limit: int | None, *, as_json: bool
) -> None:
    from toolkit.bench import run_tasks
    from toolkit.bench.lm_eval_tasks import require_harness
    from toolkit.cli import render
    from toolkit.deploy.install import install
    from toolkit.device import connect

    require_harness()
    results = []
    for bundle, place in _places(subjects, target):
        with connect(place or "local", render.prompt_secret()) as device:
            release = render.follow(install(bundle, device)) if bundle is not None else None
            prepared = release.prepared if release else None
            results.append(render.follow(run_tasks(device, bundle.id if bundle else None, tasks, limit, prepared)))
    if as_json:
        render.print_json([result.as_json() for result in results])
        return
    rows = [
        [result.bundle_name, score.task, score.metric, render.figure(score.value, 4), render.figure(score.error, 2)]
        for result in results
        for score in result.scores
    ]
    render.table(["bundle", "task", "metric", "value", "±"], rows)
