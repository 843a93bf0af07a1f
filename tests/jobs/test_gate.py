"""The gate: limits of a profile compared with real measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.asked import operations, record_requests
from tests.support.builds import bundle as build, follow, seed_cache
from tests.support.devices import pointer, target_at
from tests.support.figures import figures, make_report, make_run
from tests.support.keys import count_keygen, make_key, write_signers
from toolkit.agent.requests import ListReleases
from toolkit.bundle import find_bundle
from toolkit.bundle.signatures import sign
from toolkit.bundle.store import record_quality
from toolkit.catalog.profile import Limits
from toolkit.deploy import deploy
from toolkit.device import Device, connect
from toolkit.errors import AgentError, ConfigError, GateFailed, SignatureError
from toolkit.events import Step
from toolkit.jobs import deploy_gated
from toolkit.jobs.gate import LimitCheck, check_limits
from toolkit.metrics import HELD_OUT, Quality

EASY = {"min_decode_tps": 0.001, "max_memory": "100 GiB"}
IMPOSSIBLE = {"min_decode_tps": 99_999.0}


def limited(device: Device, limits: dict[str, object]) -> Device:
    profile = device.profile.model_copy(update={"limits": Limits.model_validate(limits)})
    return replace(device, profile=profile)


@contextmanager
def device_with(root: Path, limits: dict[str, object], signers: Path | None = None) -> Iterator[Device]:
    with connect(target_at(root).model_copy(update={"allowed_signers": signers})) as device:
        yield limited(device, limits)


def checks(limits: dict[str, object], quality: Quality | None = None, arch: str = "x86_64") -> dict[str, LimitCheck]:
    found = check_limits(Limits.model_validate(limits), make_report([make_run()]), quality, arch)
    return {check.limit: check for check in found}


def test_every_limit_is_held_against_its_figure() -> None:
    limits: dict[str, object] = {
        "max_memory": "1000 B",
        "max_perplexity_increase_percent": 1.5,
        "min_decode_tps": 20,
        "min_token_match": 0.4,
    }
    found = checks(limits, figures())
    assert {name: check.ok for name, check in found.items()} == {
        "max_memory": True,
        "max_perplexity_increase_percent": False,
        "min_decode_tps": True,
        "min_token_match": True,
    }
    assert found["max_perplexity_increase_percent"].measured == pytest.approx(2)
    assert found["min_token_match"].low == pytest.approx(0.5 - 1.96 * 0.05)


def test_token_match_of_another_architecture_is_reported_and_not_judged() -> None:
    found = checks({"min_token_match": 0.9}, figures(), arch="aarch64")["min_token_match"]
    assert (found.ok, found.measured) == (None, 0.5)
    assert found.note == "not comparable: measured on x86_64, not on aarch64"


def test_memory_that_the_device_cannot_tell_is_not_held() -> None:
    report = make_report([make_run(rss_peak_bytes=None)])
    (found,) = check_limits(Limits.model_validate({"max_memory": "1 GiB"}), report, None, "x86_64")
    assert (found.ok, found.note) == (False, "the device can't tell")


def test_what_holds_its_limits_becomes_active(root: Path) -> None:
    bundle = build("int4-rtn-b32")
    with device_with(root, EASY) as device:
        verdict = follow(deploy_gated(bundle, device))
    assert verdict.passed and verdict.active == bundle.id == pointer(root)["release"]
    assert {check.limit for check in verdict.checks} == {"max_memory", "min_decode_tps"}
    assert json.loads(json.dumps(verdict.as_json()))["active"] is True
    verdict.enforce()


def test_one_connection_probes_and_provisions_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = build("int4-rtn-b32")
    sent = record_requests(monkeypatch)
    with device_with(root, EASY) as device:
        assert follow(deploy_gated(bundle, device)).passed
    assert operations(sent) == [
        *("settle", "probe", "provision", "missing", "hold", "install"),
        *("releases", "measure", "bench"),
        *("missing", "releases", "verify", "check", "activate"),
    ]


def test_ssh_keygen_is_asked_once_from_the_gate_to_the_activation(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed_cache(tmp_path / "cache", "int4-rtn-b32")
    bundle, key = find_bundle("phi3-nano-int4-rtn-b32"), make_key(tmp_path / "me")
    follow(sign(bundle, key))
    signers = write_signers(tmp_path / "signers", me=key)
    asked = count_keygen(tmp_path, monkeypatch)
    with device_with(root, EASY, signers) as device:
        assert follow(deploy_gated(bundle, device)).passed
    assert asked() == ["check-novalidate", "find-principals", "verify"]


def test_a_signer_who_is_removed_during_the_measurement_ends_it(root: Path, tmp_path: Path) -> None:
    seed_cache(tmp_path / "cache", "int4-rtn-b32")
    bundle, key = find_bundle("phi3-nano-int4-rtn-b32"), make_key(tmp_path / "me")
    follow(sign(bundle, key))
    signers = write_signers(tmp_path / "signers", me=key)
    with device_with(root, EASY, signers) as device, pytest.raises(SignatureError, match="is no signer's"):
        for event in deploy_gated(bundle, device):
            if isinstance(event, Step) and "run 1 of" in event.text:
                write_signers(signers)
    assert not (root / "current.json").exists() or pointer(root)["release"] is None


def test_what_does_not_leaves_the_earlier_release_active(root: Path) -> None:
    fp32, int4 = build("fp32"), build("int4-rtn-b32")
    with device_with(root, IMPOSSIBLE) as device:
        follow(deploy(fp32, device))
        verdict = follow(deploy_gated(int4, device))
    assert not verdict.passed and verdict.active == fp32.id == pointer(root)["release"]
    with pytest.raises(GateFailed) as error:
        verdict.enforce()
    assert error.value.exit_code == 10
    assert error.value.message.startswith(
        "here: phi3-nano-int4-rtn-b32 doesn't hold the limits of its profile: min_decode_tps is 99999, measured "
    )
    assert error.value.hint == f"{fp32.id[:12]} is active there; change the recipe, or [limits] in the profile"


def test_what_was_active_already_is_rolled_back(root: Path) -> None:
    fp32, int4 = build("fp32"), build("int4-rtn-b32")
    with device_with(root, IMPOSSIBLE) as device:
        follow(deploy(fp32, device))
        follow(deploy(int4, device))
        assert follow(deploy_gated(int4, device)).active == fp32.id
    assert pointer(root)["release"] == fp32.id


def test_without_an_earlier_release_nothing_stays_active(root: Path) -> None:
    int4 = build("int4-rtn-b32")
    with device_with(root, IMPOSSIBLE) as device:
        follow(deploy(int4, device))
        verdict = follow(deploy_gated(int4, device))
        assert verdict.active is None
        assert not any(entry.active for entry in device.ask(ListReleases()).releases)
        with pytest.raises(GateFailed, match="min_decode_tps"):
            verdict.enforce()
        # The usual gated deployment makes a release active again.
        assert follow(deploy_gated(int4, limited(device, EASY))).passed
    assert pointer(root)["release"] == int4.id


def test_the_same_bundle_under_an_earlier_id_is_withdrawn_too(root: Path, tmp_path: Path) -> None:
    seed_cache(tmp_path / "cache", "int4-rtn-b32")
    before = find_bundle("phi3-nano-int4-rtn-b32")
    with device_with(root, IMPOSSIBLE) as device:
        follow(deploy(before, device))
        after = record_quality(before, HELD_OUT, figures())
        assert after.id != before.id
        assert follow(deploy_gated(after, device)).active is None


def test_what_cannot_run_there_does_not_stay_active(root: Path) -> None:
    int4 = build("int4-rtn-b32")
    with device_with(root, EASY) as device:
        follow(deploy(int4, device))
        (root / "releases" / int4.id / "genai_config.json").unlink()
        with pytest.raises(AgentError, match="the runtime can't load this bundle"):
            follow(deploy_gated(int4, device))
    assert pointer(root)["release"] is None


def test_figures_are_measured_when_a_limit_asks_for_them(root: Path, local: Path, tmp_path: Path) -> None:
    for recipe in ("fp32", "int4-rtn-b32"):
        seed_cache(tmp_path / "cache", recipe)
    bundle = find_bundle("phi3-nano-int4-rtn-b32")
    with device_with(root, {"max_perplexity_increase_percent": 50.0, "min_token_match": 0.999}) as device:
        verdict = follow(deploy_gated(bundle, device))
    assert verdict.bundle.id != bundle.id
    assert verdict.bundle == find_bundle("phi3-nano-int4-rtn-b32")
    assert {check.limit: check.ok for check in verdict.checks} == {
        "max_perplexity_increase_percent": True,
        "min_token_match": False,
    }


def test_a_limit_on_quality_without_figures_says_how_to_get_them(root: Path) -> None:
    bundle = build("int4-rtn-b32")
    with device_with(root, {"max_perplexity_increase_percent": 3.0}) as device, pytest.raises(ConfigError) as error:
        follow(deploy_gated(bundle, device))
    assert error.value.message.startswith("phi3-nano-int4-rtn-b32 has no quality figures, which the profile's limits")
    assert "edgephi optimize phi3-nano --recipe fp32" in (error.value.hint or "")
    assert "edgephi eval phi3-nano-int4-rtn-b32" in (error.value.hint or "")
    assert not (root / "releases").exists()


def test_a_profile_without_limits_says_where_they_stand(root: Path) -> None:
    with device_with(root, {}) as device, pytest.raises(ConfigError) as error:
        follow(deploy_gated(build("int4-rtn-b32"), device))
    assert error.value.message == "profile 'local' has no limits to check"
    assert "under [limits] in a profile" in (error.value.hint or "")


def test_a_check_has_words_for_what_was_not_measured(root: Path) -> None:
    with device_with(root, EASY) as device:
        verdict = follow(deploy_gated(build("int4-rtn-b32"), device))
    unknown = replace(verdict, checks=(LimitCheck("max_memory", 1000.0, None, ok=False),), active=None)
    with pytest.raises(GateFailed) as error:
        unknown.enforce()
    assert "max_memory is 1,000 B, measured unknown" in error.value.message
    assert (error.value.hint or "").startswith("nothing is active there")
