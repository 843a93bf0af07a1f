"""A host's settings in the user's OpenSSH configuration, so that `edgephi` reaches every host that `ssh` reaches."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from toolkit.errors import ConfigError

CONFIG_VARIABLE = "EDGEPHI_SSH_CONFIG"
CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 15
_FOR_A_SHELL = re.compile(r"[\s'\"`;&<>|(){}]|\\\Z|\A-")
# Characters that ssh lets through, and a shell reads as something else unless they are quoted; cmd.exe doesn't.
_FOR_QUOTES = re.compile(r"[$\\]|\A[~#]")
_INTERACTIVE = {"password": "passwordauthentication", "keyboard-interactive": "kbdinteractiveauthentication"}


class SshTarget(Protocol):
    """The fields of a target that concern its address. None leaves a field to the OpenSSH configuration."""

    @property
    def name(self) -> str: ...
    @property
    def host(self) -> str | None: ...
    @property
    def user(self) -> str | None: ...
    @property
    def port(self) -> int | None: ...
    @property
    def identity_file(self) -> Path | str | None: ...
    @property
    def known_hosts(self) -> Path | str | None: ...
    @property
    def os(self) -> str | None: ...


@dataclass(frozen=True)
class SshOptions:
    """The settings to reach one host. `known_hosts` are read in order; new keys are appended to the first.

    An identity file may be there as its public part (`.pub`) alone. `agent` is a socket, "" for none, None for the
    usual one. `host_key_algorithms` is empty where the configuration doesn't limit them.
    """

    hostname: str
    user: str
    port: int
    identity_files: tuple[Path, ...]
    certificate_files: tuple[Path, ...]
    identities_only: bool
    agent: str | None
    interactive: frozenset[str]
    known_hosts: tuple[Path, ...]
    hash_known_hosts: bool
    host_key_alias: str | None
    host_key_algorithms: tuple[str, ...]
    proxy_command: str | None
    connect_timeout_s: float
    # The best first; empty where there is no ssh to ask.
    ciphers: tuple[str, ...] = ()


def resolve(target: SshTarget) -> SshOptions:
    """Read the configuration as `ssh` does: from `ssh -G` where there is an ssh, else with paramiko's reader.

    `EDGEPHI_SSH_CONFIG` names another file than ~/.ssh/config. Raises ConfigError for a host or a
    configuration that ssh refuses, and for an identity file that doesn't exist.
    """
    host = target.host or ""
    if not host or host.startswith("-"):
        raise ConfigError(f"target '{target.name}': '{host}' is no host name")
    identity = _expanded(target.identity_file)
    if identity is not None and not identity.is_file():
        raise ConfigError(f"target '{target.name}': identity_file {identity}: no such file")
    config_file = os.environ.get(CONFIG_VARIABLE)
    ssh = shutil.which("ssh")
    values = _ask_ssh(ssh, host, target, config_file) if ssh else _ask_paramiko(host, config_file)
    return ssh_options(host, target, identity, values)


def parse_ssh_g(text: str) -> dict[str, list[str]]:
    """Parse the output of `ssh -G`: lower-case keywords, each with its values in order."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        keyword, _, value = line.strip().partition(" ")
        if keyword and value:
            values.setdefault(keyword.lower(), []).append(value)
    return values


def ssh_options(host: str, target: SshTarget, identity: Path | None, values: Mapping[str, Sequence[str]]) -> SshOptions:
    """Put a target's own fields over the values of the configuration."""

    def first(keyword: str) -> str | None:
        value = values.get(keyword, [""])[0]
        return None if value.lower() in ("", "none") else value

    hostname = first("hostname") or host
    port = target.port or int(first("port") or 22)
    user = target.user or first("user") or getpass.getuser()
    tokens = {"%h": hostname, "%n": host, "%p": str(port), "%r": user, "%d": str(Path.home())}

    def files(keyword: str) -> list[Path]:
        return [Path(_filled(value, tokens)).expanduser() for value in values.get(keyword, ())]

    known = _expanded(target.known_hosts)
    explicit = [identity] if identity else []
    configured = [path for path in files("identityfile") if path.is_file() or public_file(path).is_file()]
    algorithms = first("hostkeyalgorithms") or ""
    return SshOptions(
        hostname=hostname,
        user=user,
        port=port,
        identity_files=tuple(dict.fromkeys([*explicit, *configured])),
        certificate_files=tuple(path for path in files("certificatefile") if path.is_file()),
        identities_only=first("identitiesonly") == "yes",
        agent=_agent(next(iter(values.get("identityagent", ())), None), tokens),
        interactive=frozenset(method for method, keyword in _INTERACTIVE.items() if first(keyword) != "no"),
        known_hosts=(known,) if known else _known_hosts_files(values, tokens),
        hash_known_hosts=first("hashknownhosts") == "yes",
        host_key_alias=first("hostkeyalias"),
        # A value like `+ssh-rsa` changes a list that isn't known here, so it sets no limit.
        host_key_algorithms=() if algorithms[:1] in "+-^" else tuple(algorithms.split(",")),
        proxy_command=_proxy_command(first("proxycommand"), first("proxyjump"), tokens),
        connect_timeout_s=float(first("connecttimeout") or 0) or CONNECT_TIMEOUT_S,
        ciphers=tuple((first("ciphers") or "").split(",")) if first("ciphers") else (),
    )


def public_file(path: Path) -> Path:
    """The path of an identity file's public part; a configuration may also name that part itself."""
    return path if path.suffix == ".pub" else path.with_name(path.name + ".pub")


def _agent(value: str | None, tokens: Mapping[str, str]) -> str | None:
    """The `agent` by IdentityAgent: a socket, a variable with one, `SSH_AUTH_SOCK` for the usual, or `none`."""
    if value is None or value == "SSH_AUTH_SOCK":
        return None
    if value.lower() == "none":
        return ""
    if value.startswith("$"):
        return os.environ.get(value.strip("${}"), "")
    return str(Path(_filled(value, tokens)).expanduser())


def _ask_ssh(ssh: str, host: str, target: SshTarget, config_file: str | None) -> dict[str, list[str]]:
    options = ["-F", config_file] if config_file else []
    options += ["-l", target.user] if target.user else []
    options += ["-p", str(target.port)] if target.port else []
    command = [ssh, "-G", *options, "--", host]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_READ_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ConfigError(f"target '{target.name}': {shlex.join(command)}: {exc}") from exc
    if done.returncode != 0:
        raise ConfigError(
            f"target '{target.name}': ssh refuses its configuration: {done.stderr.strip()}",
            f"try: {shlex.join(command)}",
        )
    return parse_ssh_g(done.stdout)


def _ask_paramiko(host: str, config_file: str | None) -> dict[str, list[str]]:
    import paramiko

    path = Path(config_file or "~/.ssh/config").expanduser()
    if not path.is_file():
        found: Mapping[str, Any] = {}
    else:
        try:
            found = paramiko.SSHConfig.from_path(str(path)).lookup(host)
        except (paramiko.SSHException, OSError) as exc:
            raise ConfigError(f"{path}: {exc}") from exc
    values = {key: value if isinstance(value, list) else [value] for key, value in found.items()}
    kinds = ("rsa", "ecdsa", "ed25519")
    values.setdefault("identityfile", [f"~/.ssh/id_{kind}" for kind in kinds])
    return values


def _known_hosts_files(values: Mapping[str, Sequence[str]], tokens: Mapping[str, str]) -> tuple[Path, ...]:
    users = values.get("userknownhostsfile") or ["~/.ssh/known_hosts ~/.ssh/known_hosts2"]
    everyones = values.get("globalknownhostsfile") or ["/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"]
    names = " ".join([*users, *everyones]).split()
    return tuple(Path(_filled(name, tokens)).expanduser() for name in names if name != "none")


def _proxy_command(command: str | None, jump: str | None, tokens: Mapping[str, str]) -> str | None:
    if command:
        for token in ("%h", "%n", "%r"):
            misread = _FOR_A_SHELL.search(tokens[token])
            if os.name != "nt" and f"'{token}'" not in command:
                misread = misread or _FOR_QUOTES.search(tokens[token])
            if token in command and misread:
                # A shell reads the command, as it does for ssh, which refuses most of such names too.
                raise ConfigError(f"{tokens[token]!r} can't stand in the ProxyCommand '{command}'")
        return _filled(command, tokens)
    if not jump:
        return None
    *before, last = jump.split(",")
    hostname, port = tokens["%h"], tokens["%p"]
    address = f"[{hostname}]:{port}" if ":" in hostname else f"{hostname}:{port}"
    config_file = os.environ.get(CONFIG_VARIABLE)
    argv = ["ssh", *(["-F", config_file] if config_file else [])]
    argv += ["-J", ",".join(before)] if before else []
    # Without a timeout of its own, the ssh to a jump host whose link is cut keeps the connection open for ever.
    argv += ["-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=2", "-W", address]
    join = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return join([*argv, "--", last if last.startswith("ssh://") else f"ssh://{last}"])


def _filled(text: str, tokens: Mapping[str, str]) -> str:
    # In one go: a value that is filled in may have a per cent sign of its own, as fe80::1%p2p1 has.
    return re.sub("%.", lambda match: "%" if match[0] == "%%" else tokens.get(match[0], match[0]), text)


def _expanded(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path).expanduser()
