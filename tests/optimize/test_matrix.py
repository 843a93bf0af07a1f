"""toolkit.optimize.matrix: the matrix comes from rules and from the tests' records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.families import versions
from toolkit.catalog import Recipe, load_recipe
from toolkit.catalog.preset import PRESETS, STAND_INS
from toolkit.catalog.recipe import list_recipes
from toolkit.optimize.matrix import (
    SHIPPED,
    Capability,
    Matrix,
    Proof,
    matrix,
    needs_remote_code,
    providers,
    read_record,
    refusal,
    workflow_sha256,
    write_record,
)

NOTHING = Matrix({}, (), ())
RTN = "int4-rtn-b32"


def proof(architecture: str, recipe: Recipe) -> Proof:
    digest = workflow_sha256(recipe, "cpu", remote_code=needs_remote_code(architecture))
    return Proof(architecture, "cpu", recipe.name, STAND_INS[architecture], digest, 300, kld_mean=0.15)


def cell(recipe: Recipe, record: Matrix, architecture: str = "phi-4-mini", provider: str = "cpu") -> Capability:
    found = matrix([recipe], record)
    return next(cell for cell in found if (cell.architecture, cell.provider) == (architecture, provider))


def test_every_published_architecture_has_a_stand_in() -> None:
    assert set(STAND_INS) == {preset.name for preset in PRESETS.values() if preset.hub_id}
    for published, stand_in in STAND_INS.items():
        large, small = PRESETS[published], PRESETS[stand_in]
        assert large.architecture == small.architecture
        assert large.tied_embeddings == small.tied_embeddings
        assert large.partial_rotary_factor == small.partial_rotary_factor
        assert bool(large.long_factor) == bool(small.long_factor)
        assert (large.heads == large.kv_heads) == (small.heads == small.kv_heads)


def test_matrix_has_every_combination() -> None:
    cells = matrix()
    assert len({(c.architecture, c.provider, c.recipe) for c in cells}) == len(cells)
    assert len(cells) == len(STAND_INS) * len(providers()) * len(list_recipes())
    assert all(c.reason for c in cells)


def test_what_is_proven_is_tested_and_says_how_well() -> None:
    recipe = load_recipe(RTN)
    found = cell(recipe, replace(NOTHING, proofs=(proof("phi-4-mini", recipe),)))
    assert (found.status, found.hub_id) == ("tested", "microsoft/Phi-4-mini-instruct")
    assert found.reason == "KL divergence 0.15 nats from transformers on random weights"


def test_a_proof_is_of_one_architecture() -> None:
    recipe = load_recipe(RTN)
    record = replace(NOTHING, proofs=(proof("phi-4-mini", recipe),))
    assert cell(recipe, record, "phi-3-mini-4k").status == "expected"


def test_a_changed_recipe_is_not_proven_any_more() -> None:
    recipe = load_recipe(RTN)
    record = replace(NOTHING, proofs=(proof("phi-4-mini", recipe),))
    found = cell(recipe.model_copy(update={"accuracy_level": 1}), record)
    assert found.status == "expected"
    assert "no test has built it with these settings" in found.reason


def test_a_users_copy_of_a_recipe_is_proven_with_it() -> None:
    recipe = load_recipe(RTN)
    record = replace(NOTHING, proofs=(proof("phi-4-mini", recipe),))
    assert cell(recipe.model_copy(update={"name": "mine", "description": "mine"}), record).status == "tested"


def test_a_gpu_is_expected_to_work_and_an_npu_cannot() -> None:
    recipe = load_recipe(RTN)
    assert cell(recipe, NOTHING, provider="cuda").status == "expected"
    found = cell(recipe, NOTHING, provider="qnn")
    assert (found.status, found.reason) == ("impossible", "no bundle can be built for provider 'qnn'")


def test_a_refusal_has_the_words_of_the_rule() -> None:
    wide = load_recipe(RTN).model_copy(update={"block_size": 256})
    assert refusal("phi-3-tiny", wide, "cpu") == (
        "recipe 'int4-rtn-b32': blocks of 256 don't divide the intermediate size 640"
    )
    assert refusal("phi-3-mini-4k", wide, "cpu") is None
    found = cell(wide, NOTHING)
    assert found.status == "expected"
    assert "too coarse for the small test model" in found.reason


def test_remote_code_goes_with_what_the_builder_does_alone() -> None:
    small = "phi-3-small-8k"
    assert refusal(small, load_recipe("fp32"), "cpu") is None
    assert refusal(small, load_recipe(RTN), "cpu") is None
    reason = refusal(small, load_recipe("int4-gptq-b32"), "cpu")
    assert reason is not None and "don't know the layers of a model with remote code" in reason
    assert cell(load_recipe(RTN), NOTHING, small).trust_remote_code
    assert not cell(load_recipe(RTN), NOTHING).trust_remote_code


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    recipe = load_recipe(RTN)
    proofs = (proof("phi-4-mini", recipe), proof("phi-3-mini-4k", recipe))
    record = Matrix({"torch": "2"}, ("onnxruntime==1",), proofs)
    write_record(record, tmp_path / "a.json")
    write_record(replace(record, proofs=proofs[::-1]), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert set(read_record(tmp_path / "a.json").proofs) == set(proofs)


REGENERATE = "run `make matrix`"


def test_the_shipped_record_was_made_with_these_versions() -> None:
    record, here = read_record(), versions()
    assert record.tools == here.tools, REGENERATE
    assert set(record.runtime) == set(here.runtime), REGENERATE


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_every_shipped_recipe_is_proven_wherever_no_rule_refuses_it(recipe: Recipe) -> None:
    record = read_record()
    unproven = [
        architecture
        for architecture, stand_in in STAND_INS.items()
        if not refusal(architecture, recipe, "cpu")
        and not refusal(stand_in, recipe, "cpu")
        and not record.proof(architecture, "cpu", recipe)
    ]
    assert not unproven, REGENERATE


def test_the_shipped_record_proves_nothing_that_is_gone() -> None:
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    for known in read_record(SHIPPED).proofs:
        assert known.recipe in recipes, REGENERATE
        assert known.architecture in STAND_INS, REGENERATE
        assert known.stand_in == STAND_INS[known.architecture], REGENERATE
