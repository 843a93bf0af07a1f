"""Logging in: the target's own key, the agent's, the configured ones, then what only the user can unlock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.pkey import UnknownKeyType

from toolkit.errors import AuthFailed, HostUnreachable
from toolkit.transport import PromptSecret
from toolkit.transport.ssh_link import Link

_UNUSABLE_KEY = (paramiko.SSHException, UnknownKeyType, UnsupportedAlgorithm, ValueError, OSError)


@dataclass
class _Login:
    link: Link
    methods: set[str] = field(default_factory=set)
    tried: list[str] = field(default_factory=list)
    locked: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def log_in(link: Link, prompt_secret: PromptSecret | None) -> None:
    """Authenticate. `prompt_secret` is called once at most, and what it returns is forgotten.

    Raises AuthFailed with what was tried and what to do, HostUnreachable when the link breaks.
    """
    login = _Login(link)
    if _attempt(login, None, lambda user: link.transport.auth_none(user)):
        return
    for label, key in _keys(login):
        if _attempt(login, label, lambda user, key=key: link.transport.auth_publickey(user, key)):  # type: ignore[misc]
            return
    if prompt_secret is not None and _ask(login, prompt_secret):
        return
    raise _refused(login)


def _attempt(login: _Login, label: str | None, authenticate: Callable[[str], list[str]]) -> bool:
    transport = login.link.transport
    if label is not None:
        login.tried.append(label)
    try:
        # What is returned without being logged in is what a server with two factors wants next.
        login.methods |= set(authenticate(login.link.options.user))
    except paramiko.BadAuthenticationType as exc:
        login.methods |= set(exc.allowed_types)
    except (paramiko.SSHException, EOFError, OSError) as exc:
        if not transport.is_active():
            raise _dropped(login) from exc
    return bool(transport.is_authenticated())


def _keys(login: _Login) -> Iterator[tuple[str, Any]]:
    options = login.link.options
    first, others = options.identity_files[:1], options.identity_files[1:]
    yield from _file_keys(login, first)
    yield from _agent_keys(options.identity_files if options.identities_only else None)
    yield from _file_keys(login, others)


def _file_keys(login: _Login, paths: tuple[Path, ...]) -> Iterator[tuple[str, Any]]:
    for path in paths:
        try:
            key = paramiko.PKey.from_path(path)
        except (TypeError, paramiko.PasswordRequiredException):
            # TypeError is cryptography's word for an encrypted key without a passphrase.
            login.locked.append(path)
        except _UNUSABLE_KEY as exc:
            login.unreadable.append(f"{path}: {exc}")
        else:
            yield str(path), key


def _agent_keys(only: tuple[Path, ...] | None) -> Iterator[tuple[str, Any]]:
    """The agent's keys; with `only`, those that belong to these files, as IdentitiesOnly demands."""
    allowed = None if only is None else {_public_part(path) for path in only}
    try:
        agent = paramiko.Agent()
    except (paramiko.SSHException, OSError):
        return
    try:
        for key in agent.get_keys():
            if allowed is None or key.get_base64() in allowed:
                yield f"agent: {key.comment or key.get_name()}", key
    finally:
        agent.close()


def _public_part(path: Path) -> str:
    try:
        fields = path.with_name(path.name + ".pub").read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return ""
    return fields[1] if len(fields) > 1 else ""


def _ask(login: _Login, prompt_secret: PromptSecret) -> bool:
    link = login.link
    if login.locked:
        path = login.locked.pop(0)
        secret = prompt_secret(f"passphrase for {path}: ")
        try:
            key = paramiko.PKey.from_path(path, secret.encode())
        except _UNUSABLE_KEY as exc:
            raise AuthFailed(f"{link.where}: the passphrase doesn't open {path}") from exc
        return _attempt(login, str(path), lambda user: link.transport.auth_publickey(user, key))
    if login.methods & {"password", "keyboard-interactive"}:
        user = link.options.user
        secret = prompt_secret(f"password of {user} on {link.where}: ")
        return _attempt(login, "password", lambda user: link.transport.auth_password(user, secret))
    return False


def _refused(login: _Login) -> AuthFailed:
    options = login.link.options
    tried = f"tried {', '.join(login.tried)}" if login.tried else "no key to try"
    problems = [f"{path} needs a passphrase" for path in login.locked] + login.unreadable
    message = f"{login.link.where}: login as '{options.user}' refused: {'; '.join([tried, *problems])}"
    if login.locked:
        return AuthFailed(message, f"give it to the agent first: ssh-add {login.locked[0]}")
    copy = f"ssh-copy-id -p {options.port} {options.user}@{options.hostname}"
    if not login.tried:
        return AuthFailed(message, f"make a key with 'ssh-keygen -t ed25519' and install it with '{copy}'")
    return AuthFailed(message, f"install a key there with '{copy}', or set user and identity_file")


def _dropped(login: _Login) -> AuthFailed | HostUnreachable:
    where = login.link.where
    if len(login.tried) > 1:
        return AuthFailed(
            f"{where}: the server hung up after {len(login.tried)} keys: {', '.join(login.tried)}",
            "name the right one: set identity_file of the target",
        )
    return HostUnreachable(f"{where}: the connection was lost during the login", "try again")
