"""tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.deploy import Delivery
    from toolkit.jobs.tune import Question, SearchOptions
    from toolkit.jobs.tune.proposal import Proposal
    from toolkit.jobs.tune.search import Outcome
    from toolkit.jobs.tune.trials import TrialRow
    from toolkit.optimize import BuildOptions

_COLUMNS = (
    "recipe",
    "threads",
    "chunk",
    "n-gram",
    "draft",
    "size",
    "peak\nRSS",
    "TTFT\nms",
    "decode\ntok/s",
    "±",
    "ppl",
    "vs fp32",
    "KLD",
)


def _question(
    *,
    workload: str,
    objective: str,
    recipes: tuple[str, ...],
    block_sizes: tuple[str, ...],
    max_ppl_increase: float | None,
) -> Question:
    from toolkit.catalog.workload import load_workload
    from toolkit.jobs.tune import Question

    return Question(load_workload(workload), objective, recipes, tuple(map(int, block_sizes)), max_ppl_increase)


def _search_options(
    *,
    budget: float,
    trials: int | None,
    quality: bool,
    text: Path | None,
    build: BuildOptions,
    delivery: Delivery,
    fresh: bool,
    out: Path | None,
) -> SearchOptions:
    from toolkit.cli import render
    from toolkit.jobs.tune import SearchOptions

    return SearchOptions(
        budget_s=budget,
        trials=trials,
        quality=quality,
        text=text,
        build=build,
        delivery=delivery,
        fresh=fresh,
        out=out,
        prompt_secret=render.prompt_secret(),
    )


@click.command()
@click.argument("model")
@click.argument("target", shell_complete=options.names("targets"))
@click.option(
    "--objective",
    type=click.Choice(["decode_tps", "ttft", "memory"]),
    default="decode_tps",
    show_default=True,
    help="Figure to optimize.",
)
@click.option(
    "--max-ppl-increase",
    callback=options.parsed("parse_percent"),
    metavar="PERCENT",
    help="Largest increase of perplexity over fp32. Default: the profile's limit, or 3%.",
)
@click.option(
    "--budget",
    callback=options.parsed("parse_duration"),
    default="30m",
    show_default=True,
    metavar="TIME",
    help="Time after which no trial begins: 90s, 30m, 2h.",
)
@click.option("--trials", type=click.IntRange(1), help="Largest number of trials, those of earlier runs included.")
@click.option(
    "--recipe",
    "-r",
    "recipes",
    multiple=True,
    shell_complete=options.names("recipes"),
    help="Candidate recipe. Repeatable. Default: all. The profile's own recipe is always a candidate.",
)
@click.option(
    "--block-size",
    "block_sizes",
    multiple=True,
    type=click.Choice(["16", "32", "64", "128", "256"]),
    help="Try each candidate with this block size too. Repeatable.",
)
@options.workload
@click.option("--context", type=click.IntRange(1), help="Context in tokens to plan for. Default: the profile's.")
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="UTF-8 text to measure quality on. Default: the held-out text that ships with phi3-nano.",
)
@options.calibration
@click.option("--quality/--no-quality", default=True, help="Compare with fp32 on this machine (the default).")
@options.offline
@options.trust_remote_code
@click.option("--fresh", is_flag=True, help="Forget earlier trials of this search, and measure again.")
@click.option("--dry-run", is_flag=True, help="Show the candidates and settings to search; build and measure nothing.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the winning recipe and profile. Default: ./tuned/MODEL-TARGET.",
)
@options.as_json
@options.gathered(build=options.build_options, delivery=options.delivery, question=_question, how=_search_options)
def tune(model: str, target: str, question: Question, how: SearchOptions, dry_run: bool, as_json: bool) -> None:
    """Search recipes and runtime settings by measuring them on a target.

    Recipes are checked against the fit plan, built, compared with fp32 on this machine, and measured on the target.
    Then threads, prompt chunks and n-gram speculation of the best one are searched. After an interruption the same
    command goes on where it stopped. The target's active release stays active.
    """
    from toolkit.catalog import load_target
    from toolkit.cli import render
    from toolkit.jobs.tune import tune as tune_service

    chosen = load_target(target)
    if dry_run:
        _show_proposal(model, chosen.profile, question, how.build.context_tokens, as_json=as_json)
        return
    outcome = render.follow(tune_service(model, chosen, question, how))
    if as_json:
        render.print_json(_payload(outcome))
    else:
        _show(outcome)


def _show_proposal(
    model: str, profile_name: str, question: Question, context_tokens: int | None, *, as_json: bool
) -> None:
    from toolkit.catalog import load_profile
    from toolkit.catalog.model import known_shape
    from toolkit.cli import render
    from toolkit.jobs.tune.proposal import propose
    from toolkit.optimize import build_provider

    profile = load_profile(profile_name)
    provider = build_provider(profile)
    proposal = propose(known_shape(model), profile, question, provider=provider, context_tokens=context_tokens)
    if as_json:
        render.print_json(_proposal_payload(proposal))
        return
    rows = [
        [
            candidate.recipe.name,
            render.size(candidate.fit.bundle_bytes if candidate.fit else None),
            render.memory(candidate.fit.needed_bytes if candidate.fit else None),
            candidate.pruned or "to be measured",
        ]
        for candidate in proposal.candidates
    ]
    render.table(["recipe", "bundle", "memory", ""], rows, title=f"{model} on {profile.name}: first, as planned")
    space = proposal.space
    render.note(f"  Then of the best one: threads {_listed(space.threads)}, chunks {_listed(space.chunk_sizes)},")
    render.note(f"  n-grams {_listed(space.ngram_sizes)} with drafts of {_listed(space.draft_tokens)} (0 is off);")
    render.note(f"  compared with {proposal.default.text}, at most {proposal.max_ppl_increase:+.1%} perplexity.")


def _listed(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def _show(outcome: Outcome) -> None:
    from toolkit.cli import render
    from toolkit.config import shown
    from toolkit.jobs.tune.search import SPECULATION_NOTE

    best = [row for row in outcome.rows if row.on_front]
    table = [_cells(row, recommended=row.number == outcome.recommended.number) for row in best]
    render.table(_COLUMNS, table, title=f"{outcome.model} on {outcome.target}: the Pareto front")
    for row in outcome.rows:
        if row.reason:
            render.note(f"  {row.point.text}: {row.state}: {row.reason}")
    measured = sum(1 for row in outcome.rows if row.report)
    render.note(f"  {len(outcome.rows)} trials, {measured} of them measured, {len(best)} shown; {outcome.stopped}")
    if any(row.point.settings.ngram_size for row in best):
        render.note(f"  {SPECULATION_NOTE}")
    render.note(f"  wrote {shown(outcome.recipe_file)} and {shown(outcome.profile_file)}")
    render.line(f"{outcome.verdict.sentence}.")


def _choice(value: int | None) -> str:
    return str(value) if value else "–"


def _cells(row: TrialRow, *, recommended: bool) -> list[str]:
    from toolkit.catalog.settings import NAMES as SETTING_NAMES
    from toolkit.cli import render

    def median(name: str) -> float | None:
        return row.figures.median(name) if name in row.figures else None

    increase, kld = row.quality.get("ppl_increase"), row.quality.get("kld_mean")
    return [
        f"{row.point.recipe} *" if recommended else row.point.recipe,
        *(_choice(getattr(row.point.settings, name)) for name in SETTING_NAMES),
        render.size(row.report.bundle_bytes if row.report else None),
        render.memory(median("rss_peak_bytes")),
        render.figure(median("ttft_ms")),
        render.figure(median("decode_tps")),
        f"{row.figures['decode_tps'].spread:.0%}",
        render.figure(row.quality.get("ppl"), 4),
        "–" if increase is None else f"{increase:+.2%}",
        "–" if kld is None else f"{kld:.4f}",
    ]


def _proposal_payload(proposal: Proposal) -> dict[str, Any]:
    return {
        "candidates": [
            {
                "recipe": candidate.recipe.name,
                "bundle_bytes": candidate.fit.bundle_bytes if candidate.fit else None,
                "needed_bytes": candidate.fit.needed_bytes if candidate.fit else None,
                "pruned": candidate.pruned,
            }
            for candidate in proposal.candidates
        ],
        "space": vars(proposal.space),
        "default": {"recipe": proposal.default.recipe, "settings": proposal.default.settings.model_dump()},
        "max_ppl_increase": proposal.max_ppl_increase,
    }


def _payload(outcome: Outcome) -> dict[str, Any]:
    ratio = outcome.verdict.ratio
    return {
        "model": outcome.model,
        "target": outcome.target,
        "objective": outcome.question.objective,
        "recommendation": outcome.verdict.sentence,
        "better_than_default": outcome.verdict.better,
        "ratio": vars(ratio) if ratio else None,
        "recommended": outcome.recommended.number,
        "stopped": outcome.stopped,
        "recipe_file": str(outcome.recipe_file),
        "profile_file": str(outcome.profile_file),
        "proposal": _proposal_payload(outcome.proposal),
        "trials": [_trial(row) for row in outcome.rows],
    }


def _trial(row: TrialRow) -> dict[str, Any]:
    return {
        "number": row.number,
        "recipe": row.point.recipe,
        "settings": row.point.settings.model_dump(),
        "state": row.state,
        "reason": row.reason,
        "on_front": row.on_front,
        "report": str(row.report_file) if row.report_file else None,
        "metrics": {name: vars(figure) for name, figure in row.figures.items()},
        "quality": dict(row.quality),
    }
