"""Fixtures for the agent on a device: an install root that holds the agent's file alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.agent import agent_archive


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "agent").mkdir(parents=True)
    (folder / "agent" / "agent.pyz").write_bytes(agent_archive())
    return folder
