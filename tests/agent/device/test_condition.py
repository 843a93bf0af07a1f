"""The condition of the process that will run the model: real limits of control groups and ulimit."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.groups import group
from tests.support.pythons import script
from tests.support.requests import ask

MIB = 2**20


def probe(root: Path, folder: Path, *lines: str) -> dict[str, Any]:
    """The facts that the agent finds when a shell has run `lines` before it."""
    python = script(folder / "limited-python", *lines, f'exec {sys.executable} "$@"')
    answer: dict[str, Any] = ask(root, "probe", python=python)["result"]
    return answer


@pytest.mark.parametrize(("quota", "threads"), [(0.5, 1), (1.5, 1)])
def test_a_quota_of_processors(root: Path, tmp_path: Path, quota: float, threads: int) -> None:
    with group("cpu", quota) as enter:
        facts = probe(root, tmp_path, enter)
    assert (facts["cpu_quota"], facts["cores"]) == (quota, threads)


def test_a_limit_on_memory(root: Path, tmp_path: Path) -> None:
    with group("memory", 300 * MIB) as enter:
        facts = probe(root, tmp_path, enter)
    assert facts["memory_limit_bytes"] == 300 * MIB
    assert 200 * MIB < facts["mem_available_bytes"] < 300 * MIB
    assert facts["ram_bytes"] > 300 * MIB, "the device has more; its profile is still recognized"


def test_ulimit(root: Path, tmp_path: Path) -> None:
    facts = probe(root, tmp_path, "ulimit -v 2000000")
    assert facts["memory_limit_bytes"] == 2_000_000 * 1024
    assert facts["mem_available_bytes"] <= 2_000_000 * 1024


def test_no_limit_is_none(root: Path, tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("this shell has a limit of its own")
    facts = probe(root, tmp_path)
    assert facts["memory_limit_bytes"] is None or facts["memory_limit_bytes"] < facts["ram_bytes"]
    # A quota that tests run under is one of processors, never none at all.
    assert facts["cpu_quota"] is None or facts["cpu_quota"] > 0
