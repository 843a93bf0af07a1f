"""The servers that give tokens for a registry, and so get its password: its own host, and what somebody has named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator

from toolkit.bundle.registry.http import parse_url
from toolkit.bundle.registry.layout import Repository
from toolkit.catalog.record import Record
from toolkit.catalog.toml import parse_table, read_toml
from toolkit.config import config_dir, shown
from toolkit.errors import ConfigError, RegistryError
from toolkit.untrusted import is_this_machine

# Registries that publish another host for their tokens, each by the hosts that name the registry.
_PUBLISHED = {
    "auth.docker.io": ("docker.io", "index.docker.io", "registry-1.docker.io"),
    "gitlab.com": ("registry.gitlab.com",),
    "api.digitalocean.com": ("registry.digitalocean.com",),
}


def _server(text: str) -> str:
    url = urlsplit(f"//{text}")
    if not url.hostname or url.netloc != text or "@" in text or url.port == 0:
        raise ValueError(f"'{text}' is no host; write it like auth.example.com, with :PORT unless that is 443")
    return text


class RegistrySettings(Record):
    """The user's settings of one registry: a table of registries.toml, named by the registry's host and port."""

    token_server: Annotated[str, AfterValidator(_server)]


def settings_file() -> Path:
    """The file with the user's settings of registries. A file of the working folder is never read."""
    return config_dir() / "registries.toml"


def check_realm(realm: str, repository: Repository) -> None:
    """Raise RegistryError unless a server may be asked for tokens for a repository, and be told its password.

    It must be the registry's own host, on any port, or one that is published or that the user named; on this machine
    only if the registry is; and without TLS only on this machine, or where the user allowed plain HTTP. Raises
    ConfigError for a registries.toml with a mistake.
    """
    try:
        url, own = parse_url(realm), parse_url(repository.origin)
    except RegistryError as exc:
        raise RegistryError(f"{repository.host}: names no server of tokens that can be asked: {exc.message}") from exc
    inward = is_this_machine(url.hostname or "")
    if inward and not is_this_machine(own.hostname or ""):
        raise RegistryError(f"{repository.host}: sends us to {url.netloc} for a token, which is this machine itself")
    refuse_plain(url, repository)
    if not inward and url.hostname != own.hostname and not _is_named(url, repository):
        path = settings_file()
        raise RegistryError(
            f"{repository.host}: sends us to {url.netloc} for a token, which isn't its own host",
            f'if its password may go there, {shown(path)} says so: ["{repository.host}"] and, in the next line, '
            f'token_server = "{url.netloc}"',
        )


def refuse_plain(url: SplitResult, repository: Repository) -> None:
    """Raise RegistryError for a URL without TLS, except on this machine, or where the user allowed plain HTTP.

    A registry with TLS gets no exception.
    """
    plain_ok = is_this_machine(url.hostname or "") or repository.plain_http
    if url.scheme != "https" and not (plain_ok and repository.origin.startswith("http:")):
        raise RegistryError(
            f"{repository.host}: wants a password or a token over {url.scheme}, for all to read",
            "use https; --plain-http allows it",
        )


def _is_named(url: SplitResult, repository: Repository) -> bool:
    if url.port in (None, 443) and repository.host in _PUBLISHED.get(url.hostname or "", ()):
        return True
    path = settings_file()
    tables = read_toml(path) if path.exists() else {}
    if repository.host not in tables:
        return False
    named = urlsplit(f"//{_settings(tables, repository.host, path).token_server}")
    return (named.hostname, named.port or _usual_port(url)) == (url.hostname, url.port or _usual_port(url))


def _settings(tables: dict[str, Any], host: str, path: Path) -> RegistrySettings:
    table = tables[host]
    if not isinstance(table, dict):
        raise ConfigError(f"{shown(path)}: {host}: must be a table", f'begin it with the line ["{host}"]')
    return parse_table(RegistrySettings, table, path)


def _usual_port(url: SplitResult) -> int:
    return 443 if url.scheme == "https" else 80
