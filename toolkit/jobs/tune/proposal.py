"""The proposal of a measured search: recipes checked against the fit plan, and settings. It builds nothing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from toolkit.catalog import ModelShape, Profile, Recipe, Workload, load_recipe
from toolkit.catalog.recipe import impossible, list_recipes
from toolkit.catalog.settings import DRAFT_TOKENS, OFF, RuntimeSettings
from toolkit.errors import ConfigError
from toolkit.metrics import FitPlan, plan
from toolkit.units import memory_text

DEFAULT_PPL_INCREASE = 0.03
_CHUNK_SIZES = (64, 128, 256, 512)
_NGRAM_SIZES = (2, 3, 4)
_DRAFT_TOKENS = (4, 8, 16)


@dataclass(frozen=True)
class Question:
    """The question of a search. Without `recipes` all but fp32 are candidates, each also with `block_sizes`.

    `max_ppl_increase` is relative to fp32 (0.03 is 3 %); None takes the profile's limit, or 3 % where it has none.
    """

    workload: Workload
    objective: str = "decode_tps"
    recipes: tuple[str, ...] = ()
    block_sizes: tuple[int, ...] = ()
    max_ppl_increase: float | None = None


@dataclass(frozen=True)
class Point:
    """The point that one trial tries: a recipe by name, and settings in which every choice is made."""

    recipe: str
    settings: RuntimeSettings

    @property
    def text(self) -> str:
        return f"{self.recipe} with {self.settings.text}"


@dataclass(frozen=True)
class Space:
    """The choices of a search. 0 among chunk and n-gram sizes is off; drafts are only chosen where n-grams are on."""

    recipes: tuple[str, ...]
    threads: tuple[int, ...]
    chunk_sizes: tuple[int, ...]
    ngram_sizes: tuple[int, ...]
    draft_tokens: tuple[int, ...]

    def points(self, recipe: str) -> list[Point]:
        """Every point of one recipe."""
        drafts: list[tuple[int, int | None]] = [(OFF, None)] if OFF in self.ngram_sizes else []
        drafts += [(size, tokens) for size, tokens in product(self.ngram_sizes, self.draft_tokens) if size]
        return [
            Point(
                recipe,
                RuntimeSettings(threads=threads, chunk_size=chunk, ngram_size=ngram, max_draft_tokens=tokens),
            )
            for threads, chunk, (ngram, tokens) in product(self.threads, self.chunk_sizes, drafts)
        ]


@dataclass(frozen=True)
class Candidate:
    """A recipe that was considered, with its plan; `pruned` is the reason that it isn't built, None if it may be."""

    recipe: Recipe
    fit: FitPlan | None
    pruned: str | None = None


@dataclass(frozen=True)
class Proposal:
    """The proposal of a search. `default` is the profile's recipe and settings, which the best is compared with."""

    candidates: tuple[Candidate, ...]
    space: Space
    default: Point
    max_ppl_increase: float

    @property
    def kept(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.pruned is None]

    def recipe(self, name: str) -> Recipe:
        return next(candidate.recipe for candidate in self.candidates if candidate.recipe.name == name)


def propose(
    shape: ModelShape,
    profile: Profile,
    question: Question,
    *,
    provider: str,
    context_tokens: int | None = None,
    cores: int | None = None,
) -> Proposal:
    """Propose the candidates, the profile's default first and then by predicted size, and the settings to choose from.

    Bundles are built for `provider`, with room for `context_tokens`, by default the profile's; `cores` is the number on
    the device, if that is known. Raises ConfigError when a recipe that was asked for doesn't exist, and when the
    workload needs more than the context.
    """
    candidates = [
        _candidate(shape, recipe, profile, provider, context_tokens, question.workload)
        for recipe in _recipes(profile, question)
    ]
    default = profile.defaults.recipe
    candidates.sort(key=lambda c: (c.recipe.name != default, c.fit.bundle_bytes if c.fit else 0))
    settings = profile.runtime.settings.resolved(min(cores or profile.hardware.cores, profile.hardware.cores))
    return Proposal(
        candidates=tuple(candidates),
        space=_space(tuple(c.recipe.name for c in candidates), settings, profile.hardware.cores, question.workload),
        default=Point(default, settings),
        max_ppl_increase=_bound(profile, question),
    )


def _bound(profile: Profile, question: Question) -> float:
    if question.max_ppl_increase is not None:
        return question.max_ppl_increase
    percent = profile.limits.max_perplexity_increase_percent
    return DEFAULT_PPL_INCREASE if percent is None else percent / 100


def _recipes(profile: Profile, question: Question) -> list[Recipe]:
    """The recipes of a question, and always the profile's default, which the best is compared with."""
    asked = [load_recipe(name) for name in question.recipes]
    chosen = asked or [recipe for recipe in list_recipes() if recipe.bits < 32]
    found = {recipe.name: recipe for recipe in [load_recipe(profile.defaults.recipe), *chosen]}
    for recipe in list(found.values()):
        for varied in (_with_blocks(recipe, size) for size in question.block_sizes):
            if varied is not None:
                found.setdefault(varied.name, varied)
    return list(found.values())


def _with_blocks(recipe: Recipe, size: int) -> Recipe | None:
    """The recipe with blocks of that size; None when it has no blocks, or has that size already."""
    own = recipe.block_size
    if own is None or own == size:
        return None
    changed = {
        "name": f"{recipe.name.removesuffix(f'-b{own}')}-b{size}",
        "description": recipe.description.replace(f"blocks of {own}", f"blocks of {size}"),
        "block_size": size,
    }
    return Recipe.model_validate({**dict(recipe), **changed})


def _candidate(
    shape: ModelShape,
    recipe: Recipe,
    profile: Profile,
    provider: str,
    context_tokens: int | None,
    workload: Workload,
) -> Candidate:
    if reason := impossible(recipe, provider, remote_code=shape.needs_remote_code):
        return Candidate(recipe, None, reason)
    try:
        fit = plan(shape, recipe, profile, context_tokens)
    except ConfigError as exc:
        return Candidate(recipe, None, exc.message)
    if workload.tokens > fit.context_tokens:
        raise ConfigError(
            f"workload '{workload.name}' needs {workload.tokens} tokens of context, the plan has {fit.context_tokens}",
            f"choose a shorter workload, or give --context {workload.tokens}",
        )
    if fit.fits:
        return Candidate(recipe, fit)
    needed, available = memory_text(fit.needed_bytes), memory_text(fit.available_bytes)
    return Candidate(recipe, fit, f"needs {needed} of memory, '{profile.name}' has {available} for it")


def _space(names: tuple[str, ...], default: RuntimeSettings, cores: int, workload: Workload) -> Space:
    """The choices: threads in powers of two up to the cores, chunks shorter than the prompt, some drafts; the default's
    own are among them.
    """
    threads = {1 << n for n in range(cores.bit_length())} | {cores, default.threads or cores}
    chunks = {size for size in _CHUNK_SIZES if size < workload.prompt_tokens}
    return Space(
        recipes=names,
        threads=tuple(sorted(threads)),
        chunk_sizes=tuple(sorted(chunks | {OFF, default.chunk_size or OFF})),
        ngram_sizes=tuple(sorted({OFF, *_NGRAM_SIZES, default.ngram_size or OFF})),
        draft_tokens=tuple(sorted({*_DRAFT_TOKENS, default.max_draft_tokens or DRAFT_TOKENS})),
    )
