from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.boards import payload_of
from toolkit.cli import main
from toolkit.cli.probe import _value


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("ram_bytes", 8_000_000_000, "7.45 GiB"),
        ("free_disk_bytes", 8_000_000_000, "8 GB"),
        ("ram_bytes", None, "–"),
        ("later_bytes", 2.5e9, "2.5 GB"),
        ("later_bytes", "many", "many"),
        ("soc", None, "–"),
        ("rails_mw", {}, "–"),
        ("accelerators", [], "–"),
        ("isa", ["asimd", "asimddp"], "asimd asimddp"),
        (
            "accelerators",
            ["jetson: L4T 36.4.4, JetPack 6.2.1", "cuda: Orin"],
            "jetson: L4T 36.4.4, JetPack 6.2.1, cuda: Orin",
        ),
        ("throttled", {"under_voltage_now": False, "throttled_now": False}, "none"),
        ("throttled", {"under_voltage_now": True, "throttled_now": False}, "under_voltage_now"),
        ("jetson", {"l4t": "36.4.4", "jetpack": None}, "l4t 36.4.4, jetpack –"),
        ("power_modes", {"15W": 0, "MAXN_SUPER": 2}, "15W 0, MAXN_SUPER 2"),
        ("root_owned", True, "True"),
    ],
)
def test_a_fact_as_text(key: str, value: Any, text: str) -> None:
    assert _value(key, value) == text


def test_json_has_the_facts_in_the_agents_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["targets", "probe", "local", "--json"])
    assert caught.value.code == 0
    assert list(json.loads(capsys.readouterr().out)) == list(payload_of("raspberry-pi-5-8gb", tmp_path / "board"))
