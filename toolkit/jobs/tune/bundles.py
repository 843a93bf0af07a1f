"""The bundles of a search: each is built when its recipe is first tried, with its figures beside the fp32 original."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from toolkit.bench import read_eval_text, record
from toolkit.bench.evaluate import evaluate
from toolkit.bench.reference import ensure_reference
from toolkit.bundle import Bundle
from toolkit.catalog import Profile, Recipe
from toolkit.catalog.model import SourceModel
from toolkit.deploy import check_here
from toolkit.errors import ToolkitError
from toolkit.events import Service, Warning_
from toolkit.jobs.tune.options import SearchOptions
from toolkit.jobs.tune.study import Study
from toolkit.optimize import BuildRequest, optimize

_WINDOW_TOKENS = 512


class NoReference(Exception):
    """There is no fp32 bundle to compare with: the next recipe would fail the same way, after the same wait."""


@dataclass
class Bundles:
    """Bundles of one model for one profile, and the quality figures of each, which the study keeps."""

    model: SourceModel
    profile: Profile
    options: SearchOptions
    study: Study
    _made: dict[str, tuple[Bundle, dict[str, float]]] = field(default_factory=dict)

    def of(self, recipe: Recipe) -> Service[tuple[Bundle, dict[str, float]]]:
        """Return the bundle of a recipe and its figures beside fp32, which are measured once a search.

        There are no figures where none are wanted or this machine can't measure them. Raises the errors of `optimize`,
        and NoReference with the error that kept fp32 from being built.
        """
        if recipe.name not in self._made:
            self._made[recipe.name] = yield from self._build(recipe)
        return self._made[recipe.name]

    def _build(self, recipe: Recipe) -> Service[tuple[Bundle, dict[str, float]]]:
        how = self.options.build.suiting(recipe)
        bundle = yield from optimize(BuildRequest(self.model, recipe, self.profile, how), check=check_here)
        if not self.options.quality:
            return bundle, {}
        if bundle.manifest.provider != "cpu":
            yield Warning_(f"built for {bundle.manifest.provider}: its quality can't be measured on this machine")
            return bundle, {}
        name = f"quality of {recipe.name}"
        found: dict[str, float] | None = self.study.recall(name)
        if found is None:
            bundle, found = yield from self._evaluate(bundle)
            self.study.remember(name, found)
        return bundle, found

    def _evaluate(self, bundle: Bundle) -> Service[tuple[Bundle, dict[str, float]]]:
        try:
            reference = yield from ensure_reference(
                self.model, bundle.manifest, replace(self.options.build, force=True)
            )
        except ToolkitError as exc:
            raise NoReference(exc) from exc
        shortest = min(bundle.manifest.context_tokens, reference.manifest.context_tokens)
        window = min(_WINDOW_TOKENS, shortest - 1)
        tokens = max(window, self.options.quality_tokens)
        sample = read_eval_text(self.options.text, tokens=tokens, window_tokens=window)
        found = yield from evaluate(bundle, reference, sample)
        bundle = yield from record(bundle, found)
        return bundle, {"ppl": found.ppl, "ppl_increase": found.ppl_increase, "kld_mean": found.kld_mean}
