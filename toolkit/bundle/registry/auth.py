"""Authorization at a registry: Basic credentials, or a token from the server that the registry names."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from toolkit.bundle.registry.credentials import Credential
from toolkit.bundle.registry.http import Web, parse_url
from toolkit.bundle.registry.layout import Repository
from toolkit.bundle.registry.token_servers import check_realm, refuse_plain
from toolkit.errors import RegistryError
from toolkit.untrusted import read_json

_LARGEST_TOKEN_BYTES = 2**20
_CLIENT = "edgephi"
_SCHEME = re.compile(r"(?:^|,)\s*(Basic|Bearer)\s+", re.IGNORECASE)
# No header is longer on servers' common settings, and no token has other characters.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=|:!-]{1,32768}")
_MOST_CHALLENGES = 8
_FIELD = re.compile(r'([A-Za-z_]+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Challenge:
    """A challenge of `WWW-Authenticate`: Basic credentials or, with `bearer`, a token from the server at `realm`."""

    bearer: bool
    realm: str = ""
    service: str = ""


def parse_challenges(header: str) -> list[Challenge]:
    """The Basic and Bearer challenges of a `WWW-Authenticate`, in their order."""
    starts = list(itertools.islice(_SCHEME.finditer(header), _MOST_CHALLENGES))
    found = []
    ends = [*(start.start() for start in starts[1:]), len(header)]
    for start, end in zip(starts, ends, strict=False):
        text = header[start.end() : end]
        fields = {name.lower(): value for name, value in _FIELD.findall(text)}
        found.append(
            Challenge(start[1].lower() == "bearer", realm=fields.get("realm", ""), service=fields.get("service", ""))
        )
    return found


def authorize(
    web: Web, repository: Repository, actions: str, challenges: list[Challenge], credential: Credential | None
) -> str | None:
    """The `Authorization` for a repository; None when it wants a credential that isn't there, or refuses this one.

    Raises RegistryError when the server of tokens answers without one or isn't one that `check_realm` takes, and when a
    secret would travel without TLS.
    """
    for challenge in challenges:
        if challenge.bearer:
            return _token(web, repository, actions, challenge, credential)
        if credential is not None and not credential.is_token:
            refuse_plain(parse_url(repository.origin), repository)
            return credential.basic
    return None


def _token(
    web: Web, repository: Repository, actions: str, challenge: Challenge, credential: Credential | None
) -> str | None:
    check_realm(challenge.realm, repository)
    asked = {"service": challenge.service, "scope": f"repository:{repository.path}:{actions}"}
    headers: dict[str, str] = {}
    if credential is not None and credential.is_token:
        # This is OAuth2; a GET with a password is the older way.
        form = asked | {"grant_type": "refresh_token", "refresh_token": credential.secret, "client_id": _CLIENT}
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        answer = web.request("POST", challenge.realm, headers, urlencode(form).encode())
    else:
        if credential is not None:
            headers["Authorization"] = credential.basic
        query = urlencode(asked | {"client_id": _CLIENT})
        joint = "&" if urlsplit(challenge.realm).query else "?"
        answer = web.request("GET", f"{challenge.realm}{joint}{query}", headers)
    body = answer.read(_LARGEST_TOKEN_BYTES)
    if answer.status in (400, 401, 403):
        return None
    try:
        return f"Bearer {_token_of(read_json(body))}"
    except ValueError as exc:
        server = parse_url(challenge.realm).netloc
        raise RegistryError(f"{repository.host}: {server} gives no token (status {answer.status})") from exc


def _token_of(given: Any) -> str:
    """The token in a server's answer. Raises ValueError when there is none that a header can have."""
    token = (given.get("token") or given.get("access_token")) if isinstance(given, dict) else None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ValueError("no token")
    return token
