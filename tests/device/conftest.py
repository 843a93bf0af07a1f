"""Fixtures that keep the user's keys and SSH configuration out of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_user_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the developer's SSH agent and configuration."""
    config = tmp_path / "ssh_config"
    config.write_text("IdentityFile none\n")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("EDGEPHI_SSH_CONFIG", str(config))
