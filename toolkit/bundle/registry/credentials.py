"""Credentials for registries, from the files that `docker login`, `podman login` and `oras login` write."""

from __future__ import annotations

import base64
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError, RegistryError
from toolkit.untrusted import read_json

_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HELPER_TIMEOUT_S = 60.0
# The user name that a helper gives when its secret is a token for getting other tokens.
_TOKEN_USER = "<token>"
# Docker's name for its own registry in these files.
_DOCKER_HUB = "https://index.docker.io/v1/"


@dataclass(frozen=True)
class Credential:
    """A user and a password or, with `is_token`, a token for getting other tokens."""

    user: str
    secret: str = field(repr=False)
    is_token: bool = False

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()


def config_files() -> list[Path]:
    """The files that may hold credentials: `REGISTRY_AUTH_FILE`, then config.json in `DOCKER_CONFIG` or ~/.docker."""
    files = [Path(os.environ["REGISTRY_AUTH_FILE"])] if os.environ.get("REGISTRY_AUTH_FILE") else []
    folder = os.environ.get("DOCKER_CONFIG")
    return [*files, (Path(folder) if folder else Path.home() / ".docker") / "config.json"]


def find_credential(host: str, repository: str) -> Credential | None:
    """The credential for a repository of a registry; None when there is none, and the registry is asked without.

    Raises ConfigError for a file that can't be read, RegistryError for a credential helper that fails.
    """
    for path in config_files():
        config = _read(path)
        for key in _keys(host, repository):
            found = _from_config(config, key, path)
            if found is not None:
                return found
    return None


def _keys(host: str, repository: str) -> Iterator[str]:
    """A repository's keys in those files: the most specific first, as in podman, then those of the host."""
    parts = repository.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join((host, *parts[:count]))
    yield host
    yield f"https://{host}"
    if host == "docker.io":
        yield _DOCKER_HUB


def _read(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path.read_bytes(), controls=True)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        # The message doesn't repeat the text, which may hold secrets.
        raise ConfigError(f"{path}: can't be read as JSON ({type(exc).__name__})", "`docker login` writes it") from exc
    return config if isinstance(config, dict) else {}


def _from_config(config: dict[str, Any], key: str, path: Path) -> Credential | None:
    helper = _table(config, "credHelpers").get(key)
    entry = _table(config, "auths").get(key)
    if helper is None and entry is not None:
        helper = config.get("credsStore")
    if isinstance(helper, str):
        return _ask_helper(helper, key)
    return _from_entry(entry, key, path) if isinstance(entry, dict) else None


def _table(config: dict[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _from_entry(entry: dict[str, Any], key: str, path: Path) -> Credential | None:
    token, login = entry.get("identitytoken"), entry.get("auth")
    if isinstance(token, str) and token:
        return Credential(_TOKEN_USER, token, is_token=True)
    if not isinstance(login, str) or not login:
        return None
    try:
        user, colon, secret = base64.b64decode(login, validate=True).decode().partition(":")
    except ValueError:
        colon = ""
    if not colon:
        raise ConfigError(f"{path}: the entry of {key} is no user and password", f"`docker login {key}` writes it anew")
    return Credential(user, secret)


def _ask_helper(name: str, key: str) -> Credential | None:
    if not _HELPER.fullmatch(name):
        raise ConfigError(f"'{name}' is no credential helper", "see credsStore and credHelpers in Docker's config.json")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise RegistryError(f"{program}: {type(exc).__name__}", "is that credential helper installed?") from exc
    if done.returncode:
        said = (done.stdout or done.stderr).decode("utf-8", "replace").strip()[:200]
        if "credentials not found" in said:
            return None
        raise RegistryError(f"{program}: exit code {done.returncode}: {said}", f"`docker login {key}` asks it anew")
    try:
        answer = read_json(done.stdout, controls=True)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as exc:
        raise RegistryError(f"{program}: its answer isn't a credential", "is it a credential helper?") from exc
    return Credential(user, secret, is_token=user == _TOKEN_USER)
