"""Fixtures that the tests against real SSH servers share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An OpenSSH configuration of the test's own, and no agent."""
    path = tmp_path / "ssh_config"
    path.write_text("IdentityFile none\n")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("EDGEPHI_SSH_CONFIG", str(path))
    return path
