"""Challenges, and the servers that a secret may be sent to."""

from __future__ import annotations

import pytest

from toolkit.bundle.registry.auth import Challenge, authorize, parse_challenges
from toolkit.bundle.registry.credentials import Credential
from toolkit.bundle.registry.http import Web
from toolkit.bundle.registry.layout import Repository
from toolkit.errors import RegistryError


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("", []),
        ("Negotiate", []),
        ('Basic realm="a, b"', [Challenge(bearer=False, realm="a, b")]),
        (
            'bearer realm="https://auth/token",service="reg",scope="repository:a:pull"',
            [Challenge(bearer=True, realm="https://auth/token", service="reg")],
        ),
        (
            'Bearer realm="https://auth/t", Basic realm="x"',
            [Challenge(bearer=True, realm="https://auth/t"), Challenge(bearer=False, realm="x")],
        ),
    ],
)
def test_challenges(header: str, found: list[Challenge]) -> None:
    assert parse_challenges(header) == found


ANNA = Credential("anna", "s3cret")


@pytest.mark.parametrize(
    ("challenge", "plain_http"),
    [
        (Challenge(bearer=False), False),
        (Challenge(bearer=True, realm="http://mirror.example.com/token"), False),
        (Challenge(bearer=True, realm="http://auth.example.com/token"), False),
    ],
)
def test_secrets_are_not_told_in_the_clear(challenge: Challenge, plain_http: bool) -> None:
    mirror = Repository("http://mirror.example.com", "mirror.example.com", "a", plain_http)
    with pytest.raises(RegistryError, match="for all to read") as error:
        authorize(Web(), mirror, "pull", [challenge], ANNA)
    assert "s3cret" not in str(error.value)


def test_basic_credentials() -> None:
    registry = Repository.of("registry.example.com", "a", plain_http=False)
    assert authorize(Web(), registry, "pull", [Challenge(bearer=False)], ANNA) == "Basic YW5uYTpzM2NyZXQ="
    assert authorize(Web(), registry, "pull", [Challenge(bearer=False)], None) is None
    assert authorize(Web(), registry, "pull", [], ANNA) is None
    token = Credential("<token>", "x", is_token=True)
    assert authorize(Web(), registry, "pull", [Challenge(bearer=False)], token) is None
