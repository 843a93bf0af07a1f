"""The capabilities of edgephi: architecture × provider × recipe, each tested, expected or impossible, with the reason.

The code itself refuses an `impossible` combination, in its own words. The tests recorded the `tested` ones in
`capabilities.json` (`make matrix`). The rest are `expected`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from toolkit.catalog import ModelShape, Profile, Recipe, load_profile
from toolkit.catalog.preset import PRESETS, STAND_INS
from toolkit.catalog.profile import RuntimeTable
from toolkit.catalog.recipe import list_recipes
from toolkit.catalog.shape import REMOTE_CODE, parse_shape
from toolkit.config import data_path
from toolkit.errors import ConfigError
from toolkit.files import write_whole
from toolkit.metrics import plan
from toolkit.optimize.workflow import render_workflow

Status = Literal["tested", "expected", "impossible"]

SHIPPED = data_path("capabilities.json")
# Any profile serves: whether a recipe is possible for a shape doesn't depend on the device.
_PROFILE = "raspberry-pi-5-8gb"


@dataclass(frozen=True)
class Proof:
    """One combination that a test built, loaded in the pinned runtime and held against transformers.

    The model was `stand_in`, a small random one of the architecture. `max_abs_error` (of logits) is recorded for
    unquantized recipes, `kld_mean` (nats a token, on random weights: the worst case) for the others.
    `workflow_sha256` is the hash of the workflow that was run: a changed recipe isn't proven any more.
    """

    architecture: str
    provider: str
    recipe: str
    stand_in: str
    workflow_sha256: str
    tokens: int
    max_abs_error: float | None = None
    kld_mean: float | None = None


@dataclass(frozen=True)
class Capability:
    """One cell of the matrix. `reason` says why it is impossible, or on what the other two statuses rest."""

    architecture: str
    hub_id: str | None
    provider: str
    recipe: str
    status: Status
    reason: str
    trust_remote_code: bool


@dataclass(frozen=True)
class Matrix:
    """The proofs that the tests gave, and the versions that they were made with."""

    tools: dict[str, str]
    runtime: tuple[str, ...]
    proofs: tuple[Proof, ...]

    def proof(self, architecture: str, provider: str, recipe: Recipe) -> Proof | None:
        """The proof of a combination as the recipe stands now; None without one."""
        digest = workflow_sha256(recipe, provider, remote_code=needs_remote_code(architecture))
        for proof in self.proofs:
            if (proof.architecture, proof.provider, proof.workflow_sha256) == (architecture, provider, digest):
                return proof
        return None


def providers() -> tuple[str, ...]:
    """Every execution provider that a profile may name."""
    return get_args(RuntimeTable.model_fields["provider"].annotation)


def shape_of(preset: str) -> ModelShape:
    return parse_shape(PRESETS[preset].config(), preset)


def needs_remote_code(architecture: str) -> bool:
    return PRESETS[architecture].architecture in REMOTE_CODE


def refusal(preset: str, recipe: Recipe, provider: str) -> str | None:
    """The reason why `recipe` can't be built of this shape for `provider`, in a build's own words; None if it can."""
    shape = shape_of(preset)
    try:
        _render(recipe, provider, remote_code=shape.needs_remote_code)
        plan(shape, recipe, _profile(provider))
    except ConfigError as exc:
        return exc.message
    return None


@cache
def _profile(provider: str) -> Profile:
    profile = load_profile(_PROFILE)
    runtime = profile.runtime.model_copy(update={"provider": provider})
    return profile.model_copy(update={"runtime": runtime})


def _render(recipe: Recipe, provider: str, *, remote_code: bool) -> dict[str, Any]:
    text = Path("CALIBRATION.jsonl") if recipe.calibration else None
    output, cache_folder = Path("OUTPUT"), Path("CACHE")
    return render_workflow(recipe, "MODEL", provider, text, output, cache_folder, trust_remote_code=remote_code)


def workflow_sha256(recipe: Recipe, provider: str, *, remote_code: bool) -> str:
    """Hash of a recipe's workflow and settings, whatever its name and wherever its file lies.

    Raises ConfigError for a recipe that can't be built.
    """
    settings = recipe.table()
    del settings["name"]
    content = [_render(recipe, provider, remote_code=remote_code), settings]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_record(path: Path = SHIPPED) -> Matrix:
    content = json.loads(path.read_text("utf-8"))
    proofs = tuple(Proof(**entry) for entry in content["proofs"])
    return Matrix(content["tools"], tuple(content["runtime"]), proofs)


def write_record(record: Matrix, path: Path) -> None:
    """Write a record sorted, with one proof a line and no dates: the same proofs give the same file."""
    order = sorted(record.proofs, key=lambda proof: (proof.architecture, proof.provider, proof.recipe))
    lines = [json.dumps({key: value for key, value in asdict(proof).items() if value is not None}) for proof in order]
    head = json.dumps({"tools": record.tools, "runtime": sorted(record.runtime)}, indent=1, sort_keys=True)
    text = head.removesuffix("\n}") + ',\n "proofs": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    write_whole(path, text)


def matrix(recipes: Iterable[Recipe] | None = None, record: Matrix | None = None) -> list[Capability]:
    """Every architecture × provider × recipe; by default all recipes that a name reaches and the shipped record."""
    chosen = list_recipes() if recipes is None else list(recipes)
    known = record or read_record()
    return [
        _capability(architecture, provider, recipe, known)
        for architecture in STAND_INS
        for provider in providers()
        for recipe in chosen
    ]


def _capability(architecture: str, provider: str, recipe: Recipe, record: Matrix) -> Capability:
    status, reason = _judge(architecture, provider, recipe, record)
    return Capability(
        architecture=architecture,
        hub_id=PRESETS[architecture].hub_id,
        provider=provider,
        recipe=recipe.name,
        status=status,
        reason=reason,
        trust_remote_code=needs_remote_code(architecture),
    )


def _judge(architecture: str, provider: str, recipe: Recipe, record: Matrix) -> tuple[Status, str]:
    if reason := refusal(architecture, recipe, provider):
        return "impossible", reason
    proof = record.proof(architecture, provider, recipe)
    if proof is not None:
        return "tested", _figures(proof)
    if provider != "cpu":
        return "expected", f"no rule is against it; the machine that ran the tests has no {provider} device"
    if reason := refusal(STAND_INS[architecture], recipe, provider):
        return "expected", f"no rule is against it; too coarse for the small test model ({reason})"
    return "expected", "no rule is against it; no test has built it with these settings"


def _figures(proof: Proof) -> str:
    if proof.max_abs_error is not None:
        return f"logits within {proof.max_abs_error:.1g} of transformers'"
    return f"KL divergence {proof.kld_mean:.2g} nats from transformers on random weights"
