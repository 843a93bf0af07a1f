"""Every architecture of the family: optimize → load in the pinned device runtime → logits against transformers.

`make matrix` runs all of it and keeps each proof in `toolkit/data/capabilities.json`, row by row. A proof that is
recorded for the same workflow and the same versions isn't run again.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import families
from tests.support.builds import follow, profile, session_cache
from tests.support.families import (
    Case,
    bundle,
    cases,
    device_logits,
    kl_divergence,
    model_folder,
    reference_logits,
    tokens,
)
from toolkit.bundle import Bundle, list_bundles
from toolkit.catalog import Recipe, load_recipe
from toolkit.catalog.preset import PRESETS, STAND_INS
from toolkit.catalog.recipe import list_recipes
from toolkit.cli import main
from toolkit.deploy import check_here
from toolkit.errors import AgentError, ConfigError
from toolkit.optimize import BuildOptions, BuildRequest, matrix, optimize
from toolkit.optimize.matrix import Proof, needs_remote_code, refusal, workflow_sha256

FP32_BOUND = 1e-3
RECORD = os.environ.get("EDGEPHI_RECORD_CAPABILITIES")
QUICK = ("fp32", "int4-rtn-b32")
# phi-4-mini has all that phi-3-medium-128k adds to phi-3-medium-4k: so it can wait for the whole matrix.
ARCHITECTURES = [
    pytest.param(name, marks=pytest.mark.slow) if name == "phi-3-medium-128k" else name for name in STAND_INS
]


def possible(architecture: str, recipe: Recipe) -> bool:
    """Tell if no rule refuses a recipe and the quick tests don't cover it."""
    shapes = (architecture, STAND_INS[architecture])
    return recipe.name not in QUICK and not any(refusal(shape, recipe, "cpu") for shape in shapes)


def kld_bound(recipe: Recipe) -> float:
    """Mean KL divergence in nats a token that random weights may show; an unrelated model shows 1.6.

    Random weights have no structure that rounding could spare: trained models stay far below.
    """
    bits = min(recipe.bits, recipe.mixed.bits if recipe.mixed else recipe.bits)
    if bits == 2:
        return 1.2
    if bits == 8:
        return 0.02
    return 0.3 if (recipe.block_size or 0) <= 32 else 0.6


@pytest.fixture(scope="module", autouse=True)
def forget_what_is_outdated() -> None:
    """Drop the recorded proofs of other versions, of changed workflows and of removed recipes, before new ones."""
    if not RECORD:
        return
    now, old = families.versions(), matrix.read_record(Path(RECORD))
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    valid = [
        proof
        for proof in old.proofs
        if proof.recipe in recipes
        and not refusal(proof.architecture, recipes[proof.recipe], proof.provider)
        and old.proof(proof.architecture, proof.provider, recipes[proof.recipe]) == proof
    ]
    kept = tuple(valid) if families.same_versions(old, now) else ()
    matrix.write_record(replace(now, proofs=kept), Path(RECORD))


def keep(proof: Proof) -> None:
    """Write a proof into the record."""
    if RECORD:
        old = matrix.read_record(Path(RECORD))
        matrix.write_record(replace(old, proofs=(*old.proofs, proof)), Path(RECORD))


def recorded(architecture: str, recipe: Recipe) -> bool:
    return RECORD is not None and matrix.read_record(Path(RECORD)).proof(architecture, "cpu", recipe) is not None


def skip_what_is_recorded(architecture: str, recipe: Recipe) -> None:
    if recorded(architecture, recipe):
        pytest.skip("recorded for this workflow and these versions")


def prove(built: Bundle, architecture: str, recipe: Recipe, runtimes: Path) -> None:
    """Load and generate, compare logits with transformers', keep the proof."""
    trust = needs_remote_code(architecture)
    follow(check_here(built))
    asked = cases(architecture)
    worst_error, divergence, count = 0.0, 0.0, 0
    for case, answer in zip(asked, device_logits(runtimes, built.path, asked), strict=True):
        wanted = reference_logits(model_folder(architecture), case.tokens, trust=trust)[answer.positions]
        assert wanted.std() > 1, "flat logits prove nothing"
        worst_error = max(worst_error, float(abs(wanted - answer.logits).max()))
        divergence += kl_divergence(wanted, answer.logits) * len(answer.positions)
        count += len(answer.positions)
    kld = divergence / count
    if recipe.quantized or recipe.kv_cache_bits:
        assert kld < kld_bound(recipe)
    else:
        assert worst_error < FP32_BOUND
    keep(
        Proof(
            architecture=architecture,
            provider="cpu",
            recipe=recipe.name,
            stand_in=STAND_INS[architecture],
            workflow_sha256=workflow_sha256(recipe, "cpu", remote_code=trust),
            tokens=count,
            max_abs_error=None if recipe.quantized else float(f"{worst_error:.1e}"),
            kld_mean=float(f"{kld:.2g}") if recipe.quantized else None,
        )
    )


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("recipe", QUICK)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_bundle_computes_what_transformers_computes(architecture: str, recipe: str, runtimes: Path) -> None:
    chosen = load_recipe(recipe)
    skip_what_is_recorded(architecture, chosen)
    prove(bundle(architecture, recipe), architecture, chosen, runtimes)


@pytest.mark.slow
@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    ("architecture", "recipe"),
    [(name, recipe.name) for name in STAND_INS for recipe in list_recipes() if possible(name, recipe)],
)
def test_every_recipe_works_on_every_architecture_that_no_rule_refuses(
    architecture: str, recipe: str, runtimes: Path, tmp_path: Path
) -> None:
    chosen = load_recipe(recipe)
    skip_what_is_recorded(architecture, chosen)
    trust = needs_remote_code(architecture)
    prove(families.build(model_folder(architecture), chosen, tmp_path, trust=trust), architecture, chosen, runtimes)
    shutil.rmtree(tmp_path)  # more than a hundred builds would fill a disk


def test_generation_goes_on_across_the_original_context_of_longrope(runtimes: Path) -> None:
    """At 4,096 tokens the runtime reads the text again with the long frequencies, whatever the model's config says.

    So this model has the published 4,096, unlike the other small ones. Its greedy tokens equal transformers'.
    """
    original, before, after = 4096, 6, 6
    small = PRESETS["phi-3-tiny-longrope"]
    lengths = {"max_position_embeddings": 2 * original, "original_max_position_embeddings": original}
    stand_in = replace(
        small,
        name="phi-3-tiny-longrope-4k",
        context_length=2 * original,
        published=dict(small.published) | lengths,
    )
    root = session_cache("longrope across 4096")
    folder = families.write_model(stand_in, root / "model")
    built = families.build(folder, load_recipe("fp32"), root / "cache")
    start = original - before
    case = Case(tokens(start), start, generate=before + after)
    (answer,) = device_logits(runtimes, built.path, [case])

    text = [*case.tokens, *answer.generated]
    # Transformers chooses the frequencies by the length of its input.
    short = reference_logits(folder, text[:original])
    long = reference_logits(folder, text)
    wanted = [*short[start - 1 :].argmax(axis=-1), *long[original : len(text) - 1].argmax(axis=-1)]
    assert answer.generated == [int(token) for token in wanted]
    assert abs(short - long[:original]).max() > 0.1, "the switch makes no difference"


def test_a_prompt_beyond_the_original_context_uses_the_long_frequencies(runtimes: Path) -> None:
    built, folder = bundle("phi-4-mini", "fp32"), model_folder("phi-4-mini")
    text = tokens(1200)
    (answer,) = device_logits(runtimes, built.path, [Case(text, len(text))])
    assert abs(reference_logits(folder, text) - answer.logits).max() < FP32_BOUND


def test_trusted_code_stands_in_the_manifest() -> None:
    trusted, other = bundle("phi-3-small-8k", "fp32").manifest, bundle("phi-4-mini", "fp32").manifest
    assert trusted.recipe["trust_remote_code"] is True
    assert "trust_remote_code" not in other.recipe
    assert trusted.workflow_sha256 != other.workflow_sha256


def test_without_the_flag_no_remote_code_runs() -> None:
    with pytest.raises(ConfigError, match="needs remote code") as caught:
        follow(optimize(BuildRequest(str(model_folder("phi-3-small-8k")), load_recipe("fp32"), profile())))
    assert "--trust-remote-code" in (caught.value.hint or "")


def test_a_recipe_that_remote_code_rules_out_is_refused_before_olive_starts() -> None:
    folder = str(model_folder("phi-3-small-8k"))
    with pytest.raises(ConfigError, match="don't know the layers of a model with remote code"):
        follow(
            optimize(
                BuildRequest(folder, load_recipe("int4-kquant-b32"), profile(), BuildOptions(trust_remote_code=True))
            )
        )


@pytest.mark.usefixtures("local")
def test_weights_that_are_no_numbers_are_found_by_the_load_check(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = families.write_model(PRESETS["phi-3-tiny"], tmp_path / "broken")
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(AgentError, match="the model's logits aren't finite numbers"):
        follow(optimize(BuildRequest(str(folder), load_recipe("fp32"), profile()), check=check_here))
    assert list_bundles() == []


@pytest.mark.usefixtures("local")
def test_run_refuses_untrusted_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", str(model_folder("phi-3-small-8k")), "local", "-r", "fp32", "-w", "quick"])
    assert caught.value.code == 3
    assert "--trust-remote-code" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("local")
def test_run_takes_trusted_code_to_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(model_folder("phi-3-small-8k"))
    with pytest.raises(SystemExit) as caught:
        main(["run", folder, "local", "-r", "fp32", "-w", "quick", "--trust-remote-code", "--json"])
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    assert json.loads(out)
    assert "Python files that come with this model run while it is built" in err
