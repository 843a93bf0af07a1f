from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.builds import follow
from tests.support.devices import device_at, steps
from tests.support.figures import mini_report
from tests.support.impostors import impostor
from toolkit.agent.requests import TakeProbe
from toolkit.bench import target_key
from toolkit.bench.measure import measure
from toolkit.deploy import prepare
from toolkit.deploy.runtime import Runtime, describe
from toolkit.deploy.wheels import Platform
from toolkit.device import Device, connect
from toolkit.events import Event, Warning_
from toolkit.metrics.measurement import find_measurement
from toolkit.metrics.report import save_report

RUNTIME = Runtime("0123456789abcdef", ("onnxruntime==1.32.0",), Platform("3.11", "linux", "x86_64", ()))
KEY = "a" * 16


def others_in(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Warning_)]


@pytest.mark.usefixtures("local")
def test_this_machine_is_measured_once() -> None:
    """Unless somebody else works here just now: then it is measured again the next time."""
    with connect("local") as device:
        prepared = follow(prepare(device))
        probe, runtime = prepared.probe, prepared.runtime
        key = target_key(device, probe)
        events: list[Event] = []
        found = follow(measure(device, runtime, key), events)
        assert 0.2e9 < found.read_bytes_per_s < 2e12
        assert found.ops_per_s is not None and 1e9 < found.ops_per_s < 1e14
        assert steps(events)[0] == "local: measure memory and compute"
        if disturbed := others_in(events):
            assert "the speed isn't kept" in disturbed[0]
            assert find_measurement("local", key) is None
            return
        assert find_measurement("local", key) == found
        events.clear()
        assert follow(measure(device, runtime, key), events) == found
        assert events == []


def test_a_busy_machines_speed_is_not_kept(tmp_path: Path) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        with device_at(tmp_path / "device") as device:
            events: list[Event] = []
            found = follow(measure(device, RUNTIME, KEY), events)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert found.read_bytes_per_s > 0, "the figure is there for what needs one at once"
    assert steps(events) == ["here: measure memory and compute", "here: other programs were busy there: measure again"]
    (warned,) = others_in(events)
    assert re.fullmatch(
        r"here: other programs took \d+% of its processors' time while it was measured: the speed isn't kept, "
        r"and the next bench there measures it again",
        warned,
    )
    assert find_measurement("here") is None


def answers(tmp_path: Path, read_bytes_per_s: float, *shares: float | None) -> Device:
    """A device whose agent measures this rate, each time with the next share of time that others take."""
    for number, share in enumerate(shares):
        told = {"read_bytes_per_s": read_bytes_per_s, "kernels_per_s": 40.0, "others_share": share}
        line = json.dumps({"protocol": 1, "result": told}) + "\n"
        (tmp_path / f"answer-{number}").write_text(line)
    (tmp_path / "count").write_text("0")
    count = tmp_path / "count"
    return impostor(tmp_path, f"n=$(cat {count}); echo $((n+1)) > {count}; cat {tmp_path}/answer-$n")


@pytest.mark.parametrize(
    ("shares", "kept", "warned"),
    [((0.02,), True, 0), ((None,), True, 0), ((0.6, 0.03), True, 0), ((0.6, 0.4), False, 1)],
    ids=["idle", "an agent that can't tell", "busy for a moment", "busy"],
)
def test_only_an_idle_machines_speed_is_kept(
    tmp_path: Path, shares: tuple[float | None, ...], kept: bool, warned: int
) -> None:
    events: list[Event] = []
    follow(measure(answers(tmp_path, 30e9, *shares), RUNTIME, KEY), events)
    assert (find_measurement("here") is not None, len(others_in(events))) == (kept, warned)
    if warned:
        assert "other programs took 40% of its processors' time" in others_in(events)[0]


def test_a_busy_second_does_not_replace_an_idle_one(tmp_path: Path) -> None:
    first = follow(measure(answers(tmp_path, 30e9, 0.01), RUNTIME, KEY))
    follow(measure(answers(tmp_path, 1e9, 0.6, 0.6), RUNTIME, KEY, fresh=True))
    assert find_measurement("here") == first


def test_a_measurement_that_reports_contradict_is_taken_again(tmp_path: Path) -> None:
    """Reports of full-size mini at 8.7 tok/s; the kept second has 0.9 GB/s, thirty times too little."""
    noisy = follow(measure(answers(tmp_path, 0.9e9, None), RUNTIME, KEY))
    save_report(mini_report(8.7, 28.0, target="here", target_key=KEY))
    events: list[Event] = []
    again = follow(measure(answers(tmp_path, 30e9, 0.0), RUNTIME, KEY), events)
    assert steps(events) == [
        "here: measure memory and compute, for its reports contradict the last measurement",
    ]
    assert find_measurement("here") == again != noisy
    assert not again.confirmed
    events.clear()
    assert follow(measure(answers(tmp_path, 1e9), RUNTIME, KEY), events) == again
    assert events == []


def test_a_measurement_that_comes_out_the_same_stands(tmp_path: Path) -> None:
    save_report(mini_report(8.7, 28.0, target="here", target_key=KEY))
    follow(measure(answers(tmp_path, 0.9e9, 0.0), RUNTIME, KEY))
    second = follow(measure(answers(tmp_path, 0.9e9, 0.0), RUNTIME, KEY))
    assert second.confirmed
    assert follow(measure(answers(tmp_path, 5e9), RUNTIME, KEY)) == second


def test_without_its_runtime_only_memory_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "targets"
    folder.mkdir(parents=True)
    (folder / "bare.toml").write_text(f'transport = "local"\nprofile = "local"\ninstall_root = "{tmp_path / "bare"}"\n')
    with connect("bare") as device:
        probe = device.ask(TakeProbe())
        found = follow(measure(device, describe(device.target, device.profile, probe), "0" * 16))
    assert found.read_bytes_per_s > 0
    assert (found.kernels_per_s, found.ops_per_s) == (None, None)
