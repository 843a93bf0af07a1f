"""Quality of real bundles, measured in the real runtime on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builds import bundle as build
from tests.builds import follow, seed_cache
from toolkit.bench import held_out_text
from toolkit.errors import AgentError, ConfigError
from toolkit.evaluate import Evaluation, evaluate, find_reference


def compare(recipe: str, text_file: Path | None = None, tokens: int = 4096, window_tokens: int = 512) -> Evaluation:
    return follow(evaluate(build(recipe), build("fp32"), text_file, tokens=tokens, window_tokens=window_tokens))


def test_a_bundle_agrees_with_itself(local: Path) -> None:
    found = compare("fp32")
    assert found.ppl == found.reference_ppl
    assert found.kld_mean == pytest.approx(0, abs=1e-6)
    assert found.top1 == 1
    assert found.tokens == 8 * 511


def test_the_damage_of_quantization_is_ordered_as_expected(local: Path) -> None:
    fine, coarse = compare("int4-rtn-b32"), compare("int4-rtn-b128")
    assert 0 < fine.kld_mean < coarse.kld_mean
    assert 0 < fine.ppl_increase < coarse.ppl_increase < 0.2
    assert fine.kld_mean < fine.kld_p99
    assert 0.8 < coarse.top1 < fine.top1 < 1
    assert fine.kld_mean > 5 * fine.kld_mean_error > 0


def test_text_of_the_users_own_may_be_long(local: Path, tmp_path: Path) -> None:
    # More than an argument or an environment variable of a process can hold.
    text = tmp_path / "long.txt"
    text.write_text(held_out_text() * 3)
    found = compare("fp32", text, tokens=600, window_tokens=300)
    assert found.text == "long.txt"
    assert found.tokens == 2 * 299


def test_a_text_shorter_than_a_window_is_refused(local: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("In the beginning.")
    with pytest.raises(AgentError, match="the text is shorter than one window of 512 tokens"):
        compare("fp32", text)


def test_a_text_that_is_not_text_is_refused(local: Path, tmp_path: Path) -> None:
    text = tmp_path / "image.png"
    text.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match=r"image\.png: cannot be read as UTF-8 text"):
        compare("fp32", text)


def test_a_window_beyond_the_planned_context_is_refused(local: Path) -> None:
    with pytest.raises(ConfigError) as error:
        compare("fp32", window_tokens=1024)
    assert error.value.message == "windows of 1024 tokens don't fit the planned context of 1024"
    assert "--window 1023" in (error.value.hint or "")


def test_the_reference_is_the_fp32_bundle_of_the_same_weights(tmp_path: Path) -> None:
    int4 = build("int4-rtn-b32")
    with pytest.raises(ConfigError) as error:
        find_reference(int4)
    assert error.value.message == "no fp32 bundle of phi3-nano is built here to compare phi3-nano-int4-rtn-b32 with"
    seed_cache(tmp_path / "cache", "fp32")
    assert find_reference(int4).id == build("fp32").id
