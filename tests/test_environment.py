"""toolkit.environment: which variables other programs don't get."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.localhost import without_secrets
from toolkit.optimize.runner import child_environment

SECRET = [
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "OPENAI_API_KEY",
    "Db_Password",
    "CI_JOB_TOKEN_V2",
]
PLAIN = ["PATH", "PWD", "TOKENIZERS_PARALLELISM", "SSH_AUTH_SOCK", "KEYBOARD", "PIP_INDEX_URL", "SECRETARY"]


@pytest.fixture(autouse=True)
def _set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SECRET, *PLAIN):
        monkeypatch.setenv(name, "value")


def test_secrets_stay_here() -> None:
    found = without_secrets()
    assert not [name for name in SECRET if name in found]
    assert not [name for name in PLAIN if name not in found]


def test_olive_gets_none(tmp_path: Path) -> None:
    assert not set(SECRET) & set(child_environment(tmp_path))
