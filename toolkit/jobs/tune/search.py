"""The measured search for the recipe and the settings that are best for one model on one target.

A trial goes from the cheap to the dear: fit plan, build, quality on this machine, and only then the device. First each
recipe is measured once with the profile's own settings; then the settings of the best one are searched. The release
that is active on the target stays active.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import errors
from toolkit.agent import agent_sha256
from toolkit.bench import bench, target_key
from toolkit.catalog import Profile, Target, load_profile
from toolkit.catalog.model import hash_model
from toolkit.catalog.recipe import check_calibration
from toolkit.catalog.settings import RuntimeSettings
from toolkit.config import data_dir
from toolkit.deploy import prepare
from toolkit.deploy.install import install
from toolkit.device import connect
from toolkit.errors import (
    AuthFailed,
    ConfigError,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    SignatureError,
    ToolkitError,
)
from toolkit.events import Service, Step, Warning_
from toolkit.jobs.tune.bundles import Bundles, NoReference
from toolkit.jobs.tune.options import SearchOptions, identity
from toolkit.jobs.tune.output import write_files
from toolkit.jobs.tune.proposal import Point, Proposal, Question, propose
from toolkit.jobs.tune.study import Asked, Study, open_study
from toolkit.jobs.tune.trials import TrialRow, contender, kept_report, rows_of
from toolkit.jobs.tune.verdict import OBJECTIVES, Recommendation, judge
from toolkit.metrics import Report, metrics
from toolkit.metrics.report import report_path
from toolkit.optimize import build_provider, require_extra, resolve_model, tool_versions

SPECULATION_NOTE = "n-gram drafts gain as much as the text repeats itself: measure them on texts like yours"
# The share of the budget and of the trials for comparing recipes; the rest is for the settings of the best recipe.
_RECIPES_SHARE = 0.6
# The errors of a device that is off or can't be entered: they say nothing about a recipe.
_NO_WAY_IN = (HostUnreachable, AuthFailed, HostKeyUnknown, HostKeyChanged)


@dataclass(frozen=True)
class Outcome:
    """The result of a search; `recipe_file` and `profile_file` hold it for edgephi."""

    model: str
    target: str
    question: Question
    proposal: Proposal
    rows: tuple[TrialRow, ...]
    recommended: TrialRow
    verdict: Recommendation
    stopped: str
    recipe_file: Path
    profile_file: Path


def tune(model_ref: str, target: Target, question: Question, options: SearchOptions) -> Service[Outcome]:
    """Search, and write down the recipe and the profile to use.

    A search of the same question goes on where it stopped, also after a kill. A trial that fails is noted and the
    search goes on; a device out of reach ends it. Raises ConfigError when no recipe fits or none holds the quality
    bound, SignatureError for a target that takes only signed bundles, MissingExtra, DeviceError's children, and the
    first failed trial's error when no trial gave figures.
    """
    require_extra()
    if target.signers_file is not None:
        raise SignatureError(
            f"{target.name} takes only signed bundles, and a search installs many that nobody has signed",
            "search on a target of the same kind that has no allowed_signers",
        )
    profile = load_profile(target.profile)
    with connect(target, options.prompt_secret) as device:
        prepared = yield from prepare(device, options.delivery)
        machine = target_key(device, prepared.probe)
    model = yield from resolve_model(model_ref, trust_remote_code=options.build.trust_remote_code)
    provider, context = build_provider(profile), options.build.context_tokens
    cores = prepared.probe.cores
    proposal = propose(model.shape, profile, question, provider=provider, context_tokens=context, cores=cores)
    check_calibration([candidate.recipe for candidate in proposal.candidates], options.build.calibration)
    yield from _say_pruned(proposal, profile)
    about = {
        "target": target.name,
        "target_key": machine,
        "runtime": list(prepared.runtime.installed),
        "agent_sha256": agent_sha256(),
        "tools": tool_versions(),
        "model": model.id,
        "weights_sha256": (yield from hash_model(model)),
        **identity(proposal, question, options),
    }
    with _opened(about, proposal, question, fresh=options.fresh) as study:
        bundles = Bundles(model, profile, options, study)
        return (yield from _Search(bundles, target, question, options, proposal, study).run())


def _say_pruned(proposal: Proposal, profile: Profile) -> Service[None]:
    for candidate in proposal.candidates:
        if candidate.pruned:
            yield Step(f"leave out {candidate.recipe.name}: {candidate.pruned}")
    if not proposal.kept:
        first = proposal.candidates[0]
        raise ConfigError(
            f"no recipe fits '{profile.name}': {first.recipe.name} {first.pruned}",
            "a smaller --context needs less memory; `edgephi plan` shows the largest that fits",
        )


@contextmanager
def _opened(about: dict[str, Any], proposal: Proposal, question: Question, *, fresh: bool) -> Iterator[Study]:
    text = json.dumps(about, indent=1, sort_keys=True)
    folder = data_dir() / "tune" / hashlib.sha256(text.encode()).hexdigest()[:16]
    maximize = OBJECTIVES[question.objective].maximize
    with open_study(folder, proposal.space, maximize=maximize, fresh=fresh) as study:
        (folder / "search.json").write_text(text + "\n", encoding="utf-8")
        yield study


class _QualityLost(Exception):
    """The bundle doesn't hold the quality bound, so it isn't pushed."""


@dataclass
class _Search:
    bundles: Bundles
    target: Target
    question: Question
    options: SearchOptions
    proposal: Proposal
    study: Study
    first_error: ToolkitError | None = None

    @property
    def metric(self) -> str:
        return OBJECTIVES[self.question.objective].metric

    def run(self) -> Service[Outcome]:
        started = time.monotonic()
        again = self.study.give_up_interrupted()
        if before := len(self.study.trials):
            yield Step(f"trials of this search so far: {before}", skipped=True)
        tried = 0
        while not (stopped := self._stopped(time.monotonic() - started, tried)):
            asked = self._next(again, time.monotonic() - started)
            if asked is None:
                stopped = "nothing is left to try"
                break
            tried += 1
            yield from self._trial(asked)
        return (yield from self._conclude(stopped))

    def _stopped(self, elapsed_s: float, tried: int) -> str:
        if self.options.trials is not None and len(self.study.trials) >= self.options.trials:
            return f"{len(self.study.trials)} trials are done"
        # One trial is always made: a search without a figure has no answer.
        return "the budget is used" if tried and elapsed_s >= self.options.budget_s else ""

    def _next(self, again: list[Point], elapsed_s: float) -> Asked | None:
        """Begin the next trial: the interrupted ones first, then each recipe with the default's settings, then the best
        recipe's settings. None when nothing is left.
        """
        if again:
            return self.study.ask(again.pop())
        trials = self.study.trials
        seen = {trial.point for trial in trials}
        settings = self.proposal.default.settings
        firsts = [Point(candidate.recipe.name, settings) for candidate in self.proposal.kept]
        untried = [point for point in firsts if point not in seen]
        measured = [trial for trial in trials if trial.state == "measured"]
        share = elapsed_s / self.options.budget_s
        if self.options.trials is not None:
            share = max(share, len(trials) / self.options.trials)
        if untried and (not measured or share < _RECIPES_SHARE):
            return self.study.ask(untried[0])
        if not measured:
            return None
        sign = -1 if OBJECTIVES[self.question.objective].maximize else 1
        best = min(measured, key=lambda trial: sign * float(trial.facts["value"]))
        return self.study.suggest(best.point.recipe)

    def _trial(self, asked: Asked) -> Service[None]:
        """Make one trial and settle it, failed or not; only a device out of reach, or no fp32, leaves it open."""
        point = asked.point
        yield Step(f"trial {len(self.study.trials) + 1}: {point.text}")
        try:
            quality, report = yield from self._measure(point, reuse=not self.options.fresh)
        except _NO_WAY_IN:
            raise
        except NoReference as exc:
            error: ToolkitError = exc.args[0]
            error.hint = f"{error.hint or 'fp32 is what quality is relative to'}; --no-quality searches without it"
            raise error from None
        except _QualityLost as exc:
            yield Step(f"leave out {point.recipe}: {exc}")
            self.study.settle(asked, "pruned", {"reason": str(exc)})
        except ToolkitError as exc:
            self.first_error = self.first_error or exc
            yield Warning_(f"{point.text}: {exc.message}")
            why = {"reason": exc.message, "hint": exc.hint, "error": type(exc).__name__}
            self.study.settle(asked, "failed", why)
        else:
            value = metrics(report).median(self.metric)
            facts = {"report": report_path(report).name, "quality": quality, "value": value}
            self.study.settle(asked, "measured", facts, value)

    def _measure(self, point: Point, *, reuse: bool) -> Service[tuple[dict[str, float], Report]]:
        options = self.options
        bundle, quality = yield from self.bundles.of(self.proposal.recipe(point.recipe))
        increase, bound = quality.get("ppl_increase", 0.0), self.proposal.max_ppl_increase
        if increase > bound:
            raise _QualityLost(f"{increase:+.2%} perplexity, the bound is {bound:+.2%}")
        with connect(self.target, options.prompt_secret) as device:
            ready = (yield from install(bundle, device, options.delivery)).prepared
            report = yield from bench(
                device, bundle.id, self.question.workload, settings=point.settings, reuse=reuse, prepared=ready
            )
        if self.metric not in metrics(report):
            raise ConfigError(f"{self.target.name} can't tell {self.metric}", "choose another --objective")
        return quality, report

    def _conclude(self, stopped: str) -> Service[Outcome]:
        rows = rows_of(self.study.trials)
        measured = [row for row in rows if row.report]
        if not measured:
            raise self._nothing(rows)
        sign = -1 if OBJECTIVES[self.question.objective].maximize else 1
        best = min(measured, key=lambda row: sign * row.figures.median(self.metric))
        default = next((row for row in measured if row.point == self.proposal.default), None)
        verdict = yield from self._judge(best, default)
        recommended = best if verdict.better or default is None else default
        files = self._write(recommended, verdict)
        return Outcome(
            self.bundles.model.id,
            self.target.name,
            self.question,
            self.proposal,
            tuple(rows),
            recommended,
            verdict,
            stopped,
            *files,
        )

    def _judge(self, best: TrialRow, default: TrialRow | None) -> Service[Recommendation]:
        """Measure both once more and judge: the best of many was also the luckiest, and a search warms devices up."""
        objective = OBJECTIVES[self.question.objective]
        if default is None:
            why = next((row.reason for row in rows_of(self.study.trials) if row.point == self.proposal.default), None)
            missing = f"the default, {self.proposal.default.recipe}, has no figures: {why or 'it was left out'}"
            return judge(objective, contender(best, best.report), None, missing)
        if best == default:
            same = contender(best, best.report)
            return judge(objective, same, same)
        name = f"confirmation of {best.number}"
        kept = [kept_report(file) for file in self.study.recall(name) or []]
        if not kept or None in kept:
            yield Step(f"measure the default and {best.point.text} once more")
            kept = []
            for row in (default, best):
                _, report = yield from self._measure(row.point, reuse=False)
                kept.append(report)
            self.study.remember(name, [report_path(report).name for report in kept if report])
        return judge(objective, contender(best, kept[1]), contender(default, kept[0]))

    def _write(self, row: TrialRow, verdict: Recommendation) -> tuple[Path, Path]:
        model = self.bundles.model
        out = self.options.out or Path("tuned") / f"{model.name}-{self.target.name}"
        notes = [
            f"Written by `edgephi tune {model.id} {self.target.name} --objective {self.question.objective}`:",
            f"{verdict.sentence}.",
            f"Report: {row.report_file.name if row.report_file else '–'}",
        ]
        if row.point.settings.ngram_size:
            notes.append(f"{SPECULATION_NOTE}.")
        recipe = self.proposal.recipe(row.point.recipe)
        settings: RuntimeSettings = row.point.settings
        return write_files(
            out,
            recipe,
            self.bundles.profile,
            settings,
            context_tokens=self.options.build.context_tokens,
            calibration=self.options.build.calibration,
            notes=notes,
        )

    def _nothing(self, rows: Sequence[TrialRow]) -> ToolkitError:
        """The error of a search without a figure: the first failure's, of this call or of an earlier one."""
        if self.first_error is not None:
            return self.first_error
        failed = [trial.facts for trial in self.study.trials if trial.state == "failed"]
        if failed:
            kind: type[ToolkitError] = getattr(errors, failed[0]["error"])
            return kind(failed[0]["reason"], failed[0]["hint"] or "--fresh tries again")
        if lost := [row.reason for row in rows if row.state == "failed"]:
            return ConfigError(f"no trial gave figures: {lost[0]}", "--fresh measures again")
        reasons = "; ".join(f"{row.point.recipe} {row.reason}" for row in rows if row.reason)
        return ConfigError(
            f"no recipe holds the quality bound: {reasons}", "give a larger --max-ppl-increase, or other recipes"
        )
