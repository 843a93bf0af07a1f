"""The options of a search, and the facts that make two searches one and the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.deploy import PLAIN, Delivery
from toolkit.device import PromptSecret
from toolkit.jobs.tune.proposal import Proposal, Question
from toolkit.optimize import AS_PLANNED, BuildOptions

DEFAULT_BUDGET_S = 1800.0


@dataclass(frozen=True)
class SearchOptions:
    """The options of a search.

    `budget_s` counts from this call and is checked before each trial; `trials` counts those of earlier calls too.
    Without `quality` nothing is compared with the fp32 original, whose build takes 4 bytes a weight. `out` is the
    folder of the files, by default ./tuned/<model>-<target>.
    """

    budget_s: float = DEFAULT_BUDGET_S
    trials: int | None = None
    quality: bool = True
    quality_tokens: int = 8192
    text: Path | None = None
    build: BuildOptions = AS_PLANNED
    delivery: Delivery = PLAIN
    fresh: bool = False
    out: Path | None = None
    prompt_secret: PromptSecret | None = None


def identity(proposal: Proposal, question: Question, options: SearchOptions) -> dict[str, Any]:
    """The facts that make two searches one and the same, beside model and machine."""
    return {
        "objective": question.objective,
        "quality": _bound(proposal, options) if options.quality else None,
        "calibration": _sha256(options.build.calibration),
        "context_tokens": options.build.context_tokens,
        "workload": question.workload.model_dump(),
        "recipes": [candidate.recipe.table() for candidate in proposal.candidates],
        "default": [proposal.default.recipe, proposal.default.settings.model_dump()],
        "space": vars(proposal.space),
    }


def _bound(proposal: Proposal, options: SearchOptions) -> dict[str, Any]:
    tokens = options.quality_tokens
    return {"max_ppl_increase": proposal.max_ppl_increase, "tokens": tokens, "text": _sha256(options.text)}


def _sha256(file: Path | None) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file else None
