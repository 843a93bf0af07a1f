from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.builds import follow
from toolkit.agent.requests import TakeProbe
from toolkit.bench import target_key
from toolkit.bench.measure import measure
from toolkit.deploy import prepare
from toolkit.deploy.runtime import describe
from toolkit.device import connect
from toolkit.events import Event, Step
from toolkit.metrics.measurement import find_measurement


@pytest.mark.usefixtures("local")
def test_this_machine_is_measured_once() -> None:
    with connect("local") as device:
        prepared = follow(prepare(device))
        probe, runtime = prepared.probe, prepared.runtime
        key = target_key(device, probe)
        events: list[Event] = []
        found = follow(measure(device, runtime, key), events)
        assert 0.2e9 < found.read_bytes_per_s < 2e12
        assert found.ops_per_s is not None and 1e9 < found.ops_per_s < 1e14
        assert [event.text for event in events if isinstance(event, Step)] == ["local: measure memory and compute"]
        assert find_measurement("local", key) == found
        events.clear()
        assert follow(measure(device, runtime, key), events) == found
        assert events == []


def test_without_its_runtime_only_memory_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "targets"
    folder.mkdir(parents=True)
    (folder / "bare.toml").write_text(f'transport = "local"\nprofile = "local"\ninstall_root = "{tmp_path / "bare"}"\n')
    with connect("bare") as device:
        probe = device.ask(TakeProbe())
        found = follow(measure(device, describe(device.target, device.profile, probe), "0" * 16))
    assert found.read_bytes_per_s > 0
    assert (found.kernels_per_s, found.ops_per_s) == (None, None)
