"""Devices that say anything, as Hypothesis makes it: the host gets a typed value, or an error in words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tests.support import untrusted_inputs as inputs
from tests.support.bundles import manifest
from tests.support.figures import SAMPLE
from tests.support.paths import REPO
from tests.support.untrusted_inputs import held
from toolkit.agent import requests
from toolkit.agent.answers import Probed, parse
from toolkit.agent.messages import decode, parse_event, without_noise
from toolkit.agent.requests import Request
from toolkit.catalog import load_profile
from toolkit.catalog.recognize import propose_profile
from toolkit.catalog.target import parse_target
from toolkit.jobs.chat import _turn
from toolkit.jobs.doctor import checks
from toolkit.metrics.report import Report, to_json

pytestmark = pytest.mark.fuzz

SHA256 = "0123456789abcdef" * 4
LOCK = "0123456789abcdef"
POINTER = {"release": SHA256, "runtime": LOCK, "previous": [{"release": SHA256, "runtime": None}]}
RELEASE = {
    "release": SHA256,
    "manifest": manifest(()).model_dump(mode="json"),
    "installed_unix_s": 1.7e9,
    "active": True,
}
RUN = {
    "load_ns": 5, "load_peak_bytes": 1, "rss_peak_bytes": 1, "pss_bytes": None, "mem_available_start_bytes": 3,
    "mem_available_min_bytes": 2, "temp_c_start": 40.0, "temp_c_max": 50.0, "throttled": False, "cold": True,
    "samples": [SAMPLE.model_dump()], "nll": [{"sum": 10.0, "count": 4}, {"sum": 11.0, "count": 4}],
}  # fmt: skip
WINDOW = {"nll": 3.0, "reference_nll": 2.5, "kld": [0.1, 0.2], "same_top": 1}
# A right answer for each operation that has one of its own.
ANSWERS: dict[str, dict[str, Any]] = {
    "settle": {"was_whole": True},
    "missing": {"installed": False, "missing": [{"sha256": SHA256, "chunks": [SHA256]}], "free_bytes": 10},
    "releases": {"releases": [RELEASE], "pointer": POINTER},
    "manifest": {"manifest": "{}", "signatures": {"a.sig": "x"}},
    "pull": {"files": 1, "pulled_bytes": 1, "reused_bytes": 0},
    "verify": {"releases": [{"release": SHA256, "damaged": ["a"]}], "active": None, "repaired": False},
    "prune": {"removed": [SHA256], "kept": [], "freed_bytes": 12},
    "pythons": {"pythons": [{"path": "/usr/bin/python3", "version": "3.11.7", "has_ensurepip": True}]},
    "provision": {"installed": True, "packages": ["numpy==2.0"]},
    "bench": RUN,
    "evaluate": {"windows": [WINDOW, WINDOW], "matches": [0.5], "stepwise": False},
    "measure": {"read_bytes_per_s": 1e9, "kernels_per_s": 3.0},
}
ASKED: dict[str, type[Request[Any]]] = {
    kind.__name__: kind
    for kind in vars(requests).values()
    if isinstance(kind, type) and issubclass(kind, Request) and hasattr(kind, "op")
}
EVENTS: list[dict[str, Any]] = [
    {"type": "progress", "label": "push", "done": 1, "total": 2, "unit": "bytes"},
    {"type": "waiting", "holder": {"by": "me", "op": "push", "since_unix_s": 1.7e9}},
    {"type": "warning", "text": "careful"},
    {"type": "ready", "load_ns": 5, "context_tokens": 512},
    {"type": "turn_end", "prompt_tokens": 1, "token_ns": [3, 3, 9], "stopped": False, "interrupted": True},
    {"type": "system_folded"},
    {"type": "score", "log_likelihood": -3.0, "greedy": True},
]


def test_every_operation_is_asked() -> None:
    assert len(ASKED) > 20 and {"Bench", "ListReleases", "TakeProbe"} <= ASKED.keys()


@given(st.lists(inputs.raw({"protocol": 1, "event": EVENTS[0]}).map(lambda raw: raw.replace(b"\n", b"") + b"\n")))
def test_lines(lines: list[bytes]) -> None:
    for line in without_noise(iter(lines)):
        found = held(lambda line=line: decode(line, 1), ValueError)
        if not isinstance(found, Exception):
            kind, payload = found
            assert kind in ("event", "result", "error")
            json.dumps(payload, ensure_ascii=False).encode()
            held(lambda payload=payload: parse_event(payload, "pi5"))


@given(st.sampled_from(EVENTS).flatmap(inputs.mutated))
def test_events(event: Any) -> None:
    if isinstance(event, dict):
        found = held(lambda: parse_event(event, "pi5"))
        if getattr(found, "token_ns", None) is not None:
            held(lambda: _turn("text", found))


@pytest.mark.parametrize("name", ASKED)
@given(data=st.data())
def test_answers(name: str, data: st.DataObject) -> None:
    asked = ASKED[name]
    own = ANSWERS.get(asked.op)
    payload = data.draw(inputs.mutated(own) if own else st.sampled_from([*ANSWERS.values()]).flatmap(inputs.mutated))
    found = held(lambda: parse(asked._answer, payload, "pi5", "to a question"))
    for release in getattr(found, "releases", ()):
        if hasattr(release, "parsed"):
            held(lambda release=release: release.parsed("pi5"))


@given(inputs.mutated(RUN))
def test_measured_runs_make_a_report_or_none(run: Any) -> None:
    report = json.loads((REPO / "tests/data/reports/v1-phi3-nano.json").read_text())
    found = held(lambda: parse(Report, report | {"runs": [run]}, "pi5", "to 'bench'"))
    if isinstance(found, Report):
        held(lambda: to_json(found))


PROBE = {
    "board": "Raspberry Pi 5", "soc": None, "arch": "aarch64", "os": "linux", "os_name": "Debian", "kernel": "6.6",
    "libc": "glibc 2.36", "glibc": "2.36", "cpu": "Cortex-A76", "isa": ["asimd"], "cores": 4, "ram_bytes": 8 << 30,
    "mem_available_bytes": 7 << 30, "free_disk_bytes": 1 << 34, "storage": "SD", "storage_device": "mmcblk0",
    "file_system": "ext4", "python": "3.11.2", "has_ensurepip": True, "jetson": None, "cuda": None, "accelerators": [],
    "governor": None, "governor_driver": None, "power_mode": None, "power_modes": {}, "rails_mw": {}, "temp_c": 40.0,
    "throttled": None, "load_average": [0.1, 0.2, 0.3], "clock_unix_s": 1.7e9, "install_root": "/root/.edgephi",
    "root_error": None, "root_mode": "755", "root_owned": True,
}  # fmt: skip


@given(inputs.mutated(PROBE))
def test_probes_are_judged(payload: Any) -> None:
    found = held(lambda: parse(Probed, payload, "pi5", "to 'probe'"))
    if isinstance(found, Probed):
        profiles = [load_profile(name) for name in ("raspberry-pi-5-8gb", "laptop-cpu-x86", "jetson-orin-nano-8gb")]
        held(lambda: propose_profile(found, profiles, "pi5"))
        for judge in (checks.install_root, checks.disk, checks.governor, checks.power_mode, checks.temperature):
            held(lambda judge=judge: judge(found))
        held(lambda: checks.throttling(found))
        target = parse_target("pi5", {"host": "a", "profile": "raspberry-pi-5-8gb"}, "here")
        held(lambda: checks.pip(target, found))
        for profile in profiles:
            held(lambda profile=profile: (checks.glibc(profile, found), checks.memory(profile, found)))
            held(lambda profile=profile: checks.profile_fits(target, profile, found, profiles))
