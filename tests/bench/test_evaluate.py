"""Quality of real bundles, measured in the real runtime on this machine and over SSH."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, follow, seed_cache
from tests.support.devices import target_at, target_over
from tests.support.figures import figures
from tests.support.servers import needs_sshd
from toolkit import localhost
from toolkit.agent.requests import ListReleases
from toolkit.bench import Evaluation, read_eval_text, record, with_figures
from toolkit.bench.evaluate import evaluate, evaluate_on
from toolkit.bench.run import held_out_text
from toolkit.bundle import find_bundle, list_bundles, open_bundle
from toolkit.bundle.store import record_quality
from toolkit.deploy import deploy
from toolkit.deploy.install import install
from toolkit.device import connect
from toolkit.emulate import EmbeddedServer, PrivateSshd
from toolkit.errors import AgentError, ConfigError
from toolkit.events import Event, Progress, Step, Warning_
from toolkit.metrics import HELD_OUT


def compare(
    recipe: str, text_file: Path | None = None, tokens: int = 4096, window_tokens: int = 512, prompts: int = 4
) -> Evaluation:
    sample = read_eval_text(text_file, tokens=tokens, window_tokens=window_tokens, prompts=prompts)
    return follow(evaluate(build(recipe), build("fp32"), sample))


def test_a_bundle_agrees_with_itself(local: Path) -> None:
    found = compare("fp32")
    assert found.ppl == found.reference_ppl
    # Only the half precision of the reference's log probabilities makes a difference.
    assert found.kld_mean == pytest.approx(0, abs=1e-6)
    assert (found.top1, found.token_match) == (1, 1)
    assert found.tokens == 8 * 511
    assert found.arch == found.reference_arch == localhost.arch()
    assert found.match_comparable


def test_the_damage_of_quantization_is_ordered_as_expected(local: Path) -> None:
    fine, coarse = compare("int4-rtn-b32"), compare("int4-rtn-b128")
    assert 0 < fine.kld_mean < coarse.kld_mean
    assert 0 < fine.ppl_increase < coarse.ppl_increase < 0.2
    assert fine.kld_mean < fine.kld_p99
    assert 0.8 < coarse.top1 < fine.top1 < 1
    assert fine.kld_mean_error is not None
    assert fine.kld_mean > 5 * fine.kld_mean_error > 0
    assert fine.token_match is not None and fine.token_match_error is not None
    assert 0 <= fine.token_match < 1
    assert (fine.match_prompts, fine.match_tokens) == (4, 64)


def test_the_reference_is_computed_once_for_all_bundles(local: Path) -> None:
    compare("int4-rtn-b32", tokens=512, prompts=1)
    events: list[Event] = []
    sample = read_eval_text(tokens=512, window_tokens=512, prompts=1)
    follow(evaluate(build("fp32"), build("fp32"), sample), events)
    steps = [event for event in events if isinstance(event, Step)]
    assert any(step.skipped and "log-probabilities of phi3-nano-fp32" in step.text for step in steps)


def test_a_pruned_head_is_read_token_by_token(local: Path) -> None:
    events: list[Event] = []
    sample = read_eval_text(tokens=128, window_tokens=128, prompts=1)
    pruned = follow(evaluate(build("int4-rtn-b128-pruned"), build("fp32"), sample), events)
    assert pruned.stepwise
    assert any(isinstance(event, Warning_) and "read token by token" in event.text for event in events)
    whole = follow(evaluate(build("int4-rtn-b128"), build("fp32"), sample))
    assert not whole.stepwise
    assert pruned.ppl == pytest.approx(whole.ppl, rel=0.02)
    assert pruned.kld_mean == pytest.approx(whole.kld_mean, rel=0.25)


def test_text_of_the_users_own_may_be_long(local: Path, tmp_path: Path) -> None:
    # The text is longer than an argument or an environment variable of a process can be.
    text = tmp_path / "long.txt"
    text.write_text(held_out_text() * 3)
    found = compare("fp32", text, tokens=600, window_tokens=300)
    assert found.text == "long.txt"
    assert found.tokens == 2 * 299


def test_logits_that_are_not_numbers_are_named(local: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(build("int4-rtn-b32").path, folder)
    data = folder / "model.onnx.data"
    data.chmod(0o644)
    data.write_bytes(b"\xff" * data.stat().st_size)
    sample = read_eval_text(tokens=64, window_tokens=64, prompts=0)
    with pytest.raises(AgentError, match="the model's logits aren't finite numbers"):
        follow(evaluate(open_bundle(folder), build("fp32"), sample))


def test_figures_land_in_the_manifest_and_the_build_finds_them(local: Path, tmp_path: Path) -> None:
    for recipe in ("fp32", "int4-rtn-b32"):
        seed_cache(tmp_path / "cache", recipe)
    bundle = find_bundle("phi3-nano-int4-rtn-b32")
    found = follow(evaluate(bundle, None, read_eval_text(tokens=512, window_tokens=256, prompts=2)))
    recorded = follow(record(bundle, found))
    assert recorded.id != bundle.id
    assert recorded.manifest.identity == bundle.manifest.identity
    assert recorded.manifest.quality[HELD_OUT] == found.quality
    assert find_bundle("phi3-nano-int4-rtn-b32") == recorded
    assert len(list_bundles()) == 2
    events: list[Event] = []
    assert follow(with_figures(recorded, "phi3-nano"), events) == recorded
    assert [event.skipped for event in events if isinstance(event, Step)] == [True]


def test_a_target_that_has_the_files_only_links_them_under_the_new_id(root: Path, tmp_path: Path) -> None:
    seed_cache(tmp_path / "cache", "int4-rtn-b32")
    old = find_bundle("phi3-nano-int4-rtn-b32")
    with connect(target_at(root)) as device:
        follow(install(old, device))
        new = record_quality(old, HELD_OUT, figures())
        events: list[Event] = []
        follow(install(new, device), events)
        (there, *_) = device.ask(ListReleases()).releases
        assert there.parsed("here").quality[HELD_OUT].ppl == 20.4
    assert any(isinstance(event, Step) and event.skipped and "push 0 of" in event.text for event in events)
    weights = [root / "releases" / bundle.id / "model.onnx.data" for bundle in (old, new)]
    assert weights[0].samefile(weights[1])


def test_figures_on_less_of_a_text_do_not_replace_those_on_more(local: Path, tmp_path: Path) -> None:
    seed_cache(tmp_path / "cache", "fp32")
    bundle = find_bundle("phi3-nano-fp32")
    found = follow(evaluate(bundle, bundle, read_eval_text(tokens=128, window_tokens=64, prompts=1)))
    more = found.model_copy(update={"tokens": 8000, "token_match": None})
    recorded = follow(record(follow(record(bundle, more)), found))
    # Figures on more text but without a token match don't count as better.
    assert recorded.manifest.quality[HELD_OUT] == found.quality
    recorded = follow(record(recorded, found.model_copy(update={"tokens": 8000})))
    assert follow(record(recorded, found)) == recorded
    assert recorded.manifest.quality[HELD_OUT].tokens == 8000


def test_the_reference_is_built_for_figures_when_there_is_none(local: Path, tmp_path: Path) -> None:
    # The cache has Olive's files of fp32, but not the bundle.
    seed_cache(tmp_path / "cache", "fp32")
    shutil.rmtree(tmp_path / "cache" / "bundles")
    seed_cache(tmp_path / "cache", "int4-rtn-b32")
    events: list[Event] = []
    done = follow(with_figures(find_bundle("phi3-nano-int4-rtn-b32"), "phi3-nano"), events)
    assert done.manifest.quality[HELD_OUT].ppl_increase > 0
    texts = [event.text for event in events if isinstance(event, Step)]
    assert "build the fp32 original of phi3-nano to compare with" in texts
    assert {bundle.manifest.name for bundle in list_bundles()} == {"phi3-nano-fp32", "phi3-nano-int4-rtn-b32"}


@pytest.mark.parametrize("kind", [pytest.param("sshd", marks=needs_sshd), "embedded"])
def test_a_device_compares_with_a_reference_that_is_pushed_and_removed(
    kind: str, root: Path, local: Path, tmp_path: Path
) -> None:
    int4 = build("int4-rtn-b32")
    sample = read_eval_text(tokens=256, window_tokens=128, prompts=2)
    here = follow(evaluate(int4, build("fp32"), sample))
    server = PrivateSshd(tmp_path) if kind == "sshd" else EmbeddedServer(tmp_path)
    with server, connect(target_over(server, root)) as device:
        follow(deploy(int4, device))
        events: list[Event] = []
        there = follow(evaluate_on(device, None, build("fp32"), sample), events)
    assert any(isinstance(event, Progress) and event.label == "push" for event in events)
    assert there.target == "pi5" and there.bundle_id == int4.id
    assert (there.ppl, there.kld_mean, there.token_match) == (here.ppl, here.kld_mean, here.token_match)
    assert not list((root / "incoming").iterdir())


def test_the_reference_is_removed_after_a_failure_too(root: Path, local: Path, tmp_path: Path) -> None:
    int4 = build("int4-rtn-b32")
    sample = read_eval_text(tokens=256, window_tokens=128, prompts=0)
    with EmbeddedServer(tmp_path) as server, connect(target_over(server, root)) as device:
        follow(install(int4, device))
        service = evaluate_on(device, int4.id, build("fp32"), sample)
        with pytest.raises(AgentError, match="the runtime can't load this bundle"):
            for event in service:
                if isinstance(event, Progress) and event.label == "push":
                    # The release that is loaded after the push is no model any more.
                    (root / "releases" / int4.id / "genai_config.json").unlink(missing_ok=True)
        assert not list((root / "incoming").iterdir())


def test_a_release_that_is_not_there_is_told(root: Path, local: Path) -> None:
    sample = read_eval_text(tokens=256, window_tokens=128, prompts=0)
    with connect(target_at(root)) as device, pytest.raises(ConfigError) as error:
        follow(evaluate_on(device, None, build("fp32"), sample))
    assert error.value.message == "here: nothing is active there"
    assert error.value.hint == "edgephi deploy BUNDLE here"
