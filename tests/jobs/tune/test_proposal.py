"""The candidates of a search: recipes by the fit plan, settings by the device."""

from __future__ import annotations

import pytest

from tests.support.profiles import board, write_own
from toolkit.catalog import Profile, Workload, load_profile
from toolkit.catalog.model import known_shape
from toolkit.catalog.workload import load_workload
from toolkit.errors import ConfigError
from toolkit.jobs.tune import Question
from toolkit.jobs.tune.proposal import Proposal, propose

MINI = known_shape("microsoft/Phi-3-mini-4k-instruct")
NANO = known_shape("phi3-nano")


def of(profile: Profile, question: Question, **changes: object) -> Proposal:
    return propose(MINI, profile, question, **({"provider": "cpu"} | changes))  # type: ignore[arg-type]


@pytest.fixture
def workload() -> Workload:
    return load_workload("default")


def test_the_default_comes_first_then_the_smallest(workload: Workload) -> None:
    write_own("board", board(runtime__ngram_size=5, runtime__threads=3))
    proposal = of(load_profile("board"), Question(workload))
    assert proposal.candidates[0].recipe.name == "int4-rtn-b32" == proposal.default.recipe
    sizes = [candidate.fit.bundle_bytes for candidate in proposal.candidates[1:] if candidate.fit]
    assert sizes == sorted(sizes)
    assert "fp32" not in proposal.space.recipes
    assert proposal.space.threads == (1, 2, 3, 4)
    assert proposal.space.ngram_sizes == (0, 2, 3, 4, 5)
    assert proposal.default.settings.threads == 3
    assert proposal.default in proposal.space.points("int4-rtn-b32")


def test_a_recipe_that_does_not_fit_is_left_out_with_the_reason(workload: Workload) -> None:
    write_own("board", board(hardware__ram="4 GiB"))
    proposal = of(load_profile("board"), Question(workload, recipes=("int4-rtn-b128", "fp32")), context_tokens=512)
    pruned = {candidate.recipe.name: candidate.pruned for candidate in proposal.candidates}
    assert pruned["int4-rtn-b128"] is None
    assert pruned["fp32"] is not None and pruned["fp32"].startswith("needs ")
    assert pruned["fp32"].endswith("GiB of memory, 'board' has 3.25 GiB for it")
    assert [candidate.recipe.name for candidate in proposal.kept][-1] == "int4-rtn-b128"


def test_other_blocks_are_candidates_of_their_own(workload: Workload) -> None:
    write_own("board", board(defaults__context=1024))
    question = Question(workload, recipes=("int4-rtn-b32",), block_sizes=(16, 32, 256))
    proposal = propose(NANO, load_profile("board"), question, provider="cpu")
    assert proposal.space.recipes == ("int4-rtn-b32", "int4-rtn-b256", "int4-rtn-b16")
    assert proposal.recipe("int4-rtn-b16").block_size == 16
    assert "blocks of 16" in proposal.recipe("int4-rtn-b16").description


def test_blocks_that_do_not_divide_the_model_are_left_out(workload: Workload) -> None:
    write_own("board", board())
    question = Question(workload, recipes=("int4-rtn-b32",), block_sizes=(256,))
    shape = known_shape("phi-3-tiny-gqa")
    proposal = propose(shape, load_profile("board"), question, provider="cpu")
    assert "blocks of 256 don't divide" in str(proposal.candidates[-1].pruned)
    assert [candidate.recipe.name for candidate in proposal.kept] == ["int4-rtn-b32"]


def test_the_bound_is_asked_for_or_the_profiles_or_three_percent(workload: Workload) -> None:
    write_own("board", board(limits={"max_perplexity_increase_percent": 5.0}))
    write_own("other", board())
    assert of(load_profile("board"), Question(workload, max_ppl_increase=0.0)).max_ppl_increase == 0
    assert of(load_profile("board"), Question(workload)).max_ppl_increase == 0.05
    assert of(load_profile("other"), Question(workload)).max_ppl_increase == 0.03


def test_chunks_as_long_as_the_prompt_are_no_choice() -> None:
    write_own("board", board())
    quick = of(load_profile("board"), Question(load_workload("quick")))
    assert quick.space.chunk_sizes == (0,)
    assert of(load_profile("board"), Question(load_workload("default"))).space.chunk_sizes == (0, 64, 128)


def test_a_workload_beyond_the_context_is_refused(workload: Workload) -> None:
    write_own("board", board())
    with pytest.raises(ConfigError) as caught:
        of(load_profile("board"), Question(workload), context_tokens=300)
    assert caught.value.message == "workload 'default' needs 320 tokens of context, the plan has 300"
    assert caught.value.hint == "choose a shorter workload, or give --context 320"


def test_a_recipe_of_another_provider_is_left_out(workload: Workload) -> None:
    write_own("board", board())
    proposal = of(load_profile("board"), Question(workload, recipes=("fp16",)))
    assert "GPU" in str(next(c.pruned for c in proposal.candidates if c.recipe.name == "fp16"))


def test_more_cores_on_the_device_than_in_its_profile_are_not_counted_on(workload: Workload) -> None:
    write_own("board", board())
    assert of(load_profile("board"), Question(workload), cores=16).default.settings.threads == 4
    assert of(load_profile("board"), Question(workload), cores=2).default.settings.threads == 2
