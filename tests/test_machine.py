from __future__ import annotations

import os

import pytest

from toolkit import machine


def test_this_machine() -> None:
    assert machine.arch() == os.uname().machine
    assert machine.system() == "linux"
    assert machine.ram_bytes() > 2**28
    assert machine.cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("system", "cpu", "first"),
    [
        ("Linux", "aarch64", "manylinux_2_28_aarch64"),
        ("Windows", "ARM64", "win_arm64"),
        ("Windows", "AMD64", "win_amd64"),
        ("Darwin", "arm64", "macosx_15_0_arm64"),
    ],
)
def test_platform_tags(monkeypatch: pytest.MonkeyPatch, system: str, cpu: str, first: str) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: cpu)
    assert machine.platform_tags()[0] == first
