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
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

from toolkit.device.ssh.keywords import KEYWORDS, for_openssh_alone
from toolkit.errors import ConfigError
from toolkit.localhost import without_secrets

CONFIG_VARIABLE = "EDGEPHI_SSH_CONFIG"
CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 15
_FOR_A_SHELL = re.compile(r"[\s'\"`;&<>|(){}]|\\\Z|\A-")
# Characters that ssh lets through, and a shell reads as something else unless they are quoted; cmd.exe doesn't.
_FOR_QUOTES = re.compile(r"[$\\]|\A[~#]")
_TOKEN = re.compile(r"%.|\$\{\w+\}")
_OPEN_TOKEN = re.compile(r"%[A-Za-z]|\$\{")
_ALGORITHMS = {
    "host_key_algorithms": "hostkeyalgorithms",
    "certificate_algorithms": "casignaturealgorithms",
    "ciphers": "ciphers",
    "macs": "macs",
    "key_exchanges": "kexalgorithms",
}
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
    usual one. Lists of algorithms are empty where the configuration doesn't limit them. `only_openssh` names the
    keywords that only OpenSSH's client heeds, and `printed` those, in lower case, that this machine's ssh knows.
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
    ciphers: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    key_exchanges: tuple[str, ...] = ()
    certificate_algorithms: tuple[str, ...] = ()
    public_keys: bool = True
    may_ask: bool = True
    shows_banner: bool = True
    environment: tuple[tuple[str, str], ...] = ()
    only_openssh: tuple[str, ...] = ()
    printed: frozenset[str] = frozenset()


class OpenSshNeeded(ConfigError):
    """The configuration has settings that only OpenSSH's client heeds."""


def refuse_foreign(target: SshTarget, keywords: Sequence[str]) -> None:
    """Raise OpenSshNeeded when there are keywords that the client in this process doesn't heed."""
    if keywords:
        names = ", ".join(keywords)
        raise OpenSshNeeded(
            f"target '{target.name}': only OpenSSH's client heeds {names} of the SSH configuration",
            "leave `transport` and --transport out, or set openssh; that needs OpenSSH's client, and not on Windows. "
            f"Or set {keywords[0]} to its default for this host",
        )


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
    if ssh is None:
        return ssh_options(host, target, identity, _ask_paramiko(host, config_file), None, config_file)
    values = _ask_ssh(ssh, host, target, config_file)
    return ssh_options(host, target, identity, values, default_values(ssh), config_file)


def parse_ssh_g(text: str) -> dict[str, list[str]]:
    """Parse the output of `ssh -G`: lower-case keywords, each with its values in order."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        keyword, _, value = line.strip().partition(" ")
        if keyword and value:
            values.setdefault(keyword.lower(), []).append(value)
    return values


def ssh_options(
    host: str,
    target: SshTarget,
    identity: Path | None,
    values: Mapping[str, Sequence[str]],
    defaults: Mapping[str, Sequence[str]] | None = None,
    config_file: str | None = None,
) -> SshOptions:
    """Put a target's own fields over the values of the configuration, which ssh read from `config_file`.

    `defaults` are the values of ssh without a configuration, where there is an ssh.
    """
    first = partial(_first, values)
    hostname = first("hostname") or host
    port = target.port or int(_number(values, "port") or 22)
    user = target.user or first("user") or getpass.getuser()
    tokens = {"%h": hostname, "%n": host, "%p": str(port), "%r": user, "%d": str(Path.home())}
    tokens |= {"%k": first("hostkeyalias") or host, "%u": _local_user()}
    own = _expanded(target.known_hosts)
    names = _known_hosts_names(values)
    unclear = _unclear(values, tokens, [] if own else names)
    return SshOptions(
        hostname=hostname,
        user=user,
        port=port,
        proxy_command=_proxy_command(first("proxycommand"), first("proxyjump"), tokens, config_file),
        connect_timeout_s=_number(values, "connecttimeout") or CONNECT_TIMEOUT_S,
        known_hosts=(own,) if own else tuple(Path(_filled(name, tokens)).expanduser() for name in names),
        hash_known_hosts=first("hashknownhosts") == "yes",
        host_key_alias=first("hostkeyalias"),
        **_algorithms(values, defaults or {}),
        **_login(values, tokens, identity),
        shows_banner=(first("loglevel") or "").lower() not in ("silent", "quiet", "fatal", "error"),
        environment=_environment(values),
        only_openssh=(*for_openssh_alone(values, defaults or {}), *unclear),
        printed=frozenset(values),
    )


def _first(values: Mapping[str, Sequence[str]], keyword: str) -> str | None:
    value = next(iter(values.get(keyword, ())), "")
    return None if value.lower() in ("", "none") else value


def _number(values: Mapping[str, Sequence[str]], keyword: str) -> float:
    """A number above zero; 0 where there is none. Raises ConfigError, for ssh isn't always there to check it."""
    value = _first(values, keyword) or "0"
    if not re.fullmatch("[0-9]{1,9}", value):
        raise ConfigError(f"the SSH configuration: {KEYWORDS[keyword].name}: '{value}' is no number")
    return float(value)


def _login(values: Mapping[str, Sequence[str]], tokens: Mapping[str, str], identity: Path | None) -> dict[str, Any]:
    """The fields of SshOptions that concern the login."""
    first = partial(_first, values)

    def files(keyword: str) -> list[Path]:
        return [Path(_filled(value, tokens)).expanduser() for value in values.get(keyword, ())]

    preferred = (first("preferredauthentications") or "").split(",")

    def allowed(method: str, keyword: str) -> bool:
        return first(keyword) not in ("no", "false") and (preferred == [""] or method in preferred)

    explicit = [identity] if identity else []
    configured = [path for path in files("identityfile") if path.is_file() or public_file(path).is_file()]
    return {
        "identity_files": tuple(dict.fromkeys([*explicit, *configured])),
        "certificate_files": tuple(path for path in files("certificatefile") if path.is_file()),
        "identities_only": first("identitiesonly") == "yes",
        "agent": _agent(next(iter(values.get("identityagent", ())), None), tokens),
        "public_keys": allowed("publickey", "pubkeyauthentication"),
        "interactive": frozenset(method for method, keyword in _INTERACTIVE.items() if allowed(method, keyword)),
        "may_ask": first("batchmode") != "yes",
    }


def _algorithms(values: Mapping[str, Sequence[str]], defaults: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The lists of algorithms. A value like `+ssh-rsa` changes a list that isn't known here, so it sets no limit."""
    found = {}
    for field_, keyword in _ALGORITHMS.items():
        value = _first(values, keyword) or ""
        found[field_] = () if value[:1] in ("", *"+-^") else tuple(value.split(","))
    if list(values.get("kexalgorithms", ())) == list(defaults.get("kexalgorithms", ())):
        found["key_exchanges"] = ()  # the client in this process has a newer one that ssh's own list may lack
    return found


def _environment(values: Mapping[str, Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """The variables that commands there get. Those that look like secrets stay here, whatever SendEnv says."""
    patterns = [pattern for value in values.get("sendenv", ()) for pattern in value.split()]
    sent = {name: value for name, value in without_secrets().items() if any(fnmatchcase(name, p) for p in patterns)}
    pairs = [pair.partition("=") for pair in values.get("setenv", ())]
    return tuple((sent | {name: value for name, _, value in pairs}).items())


def _unclear(values: Mapping[str, Sequence[str]], tokens: Mapping[str, str], known: Sequence[str]) -> list[str]:
    """Keywords with paths that `ssh -G` prints ambiguously, or with tokens that only ssh fills in."""
    found = ["a path with blanks in UserKnownHostsFile"] if any(name[:1] not in "/~%$" for name in known) else []
    for keyword in ("IdentityFile", "CertificateFile"):
        if any(_OPEN_TOKEN.search(_filled(value, tokens)) for value in values.get(keyword.lower(), ())):
            found.append(f"the token in {keyword}")
    return found


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
    return ask_ssh_g([ssh, "-G", *options, "--", host], f"target '{target.name}'")


def ask_ssh_g(command: Sequence[str], where: str) -> dict[str, list[str]]:
    """Run an `ssh -G …` and parse its answer. Raises ConfigError, which begins with `where`, when ssh refuses."""
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_READ_TIMEOUT_S)
    except (OSError, ValueError, subprocess.TimeoutExpired) as exc:
        raise ConfigError(f"{where}: {shlex.join(command)}: {exc}") from exc
    if done.returncode != 0:
        raise ConfigError(
            f"{where}: ssh refuses its configuration: {done.stderr.decode(errors='replace').strip()}",
            f"try: {shlex.join(command)}",
        )
    return parse_ssh_g(done.stdout.decode(errors="surrogateescape"))


@cache
def default_values(ssh: str) -> Mapping[str, Sequence[str]]:
    """The values of an ssh without any configuration; empty when it doesn't tell them."""
    try:
        return ask_ssh_g([ssh, "-F", "none", "-G", "--", "localhost"], "ssh")
    except ConfigError:
        return {}


def _ask_paramiko(host: str, config_file: str | None) -> dict[str, list[str]]:
    import paramiko

    path = Path(config_file or "~/.ssh/config").expanduser()
    if not path.is_file():
        found: Mapping[str, Any] = {}
    else:
        try:
            found = paramiko.SSHConfig.from_path(str(path)).lookup(host)
        except (paramiko.SSHException, paramiko.ConfigParseError, OSError, ValueError) as exc:
            raise ConfigError(f"{path}: {exc or type(exc).__name__}") from exc
    if "include" in found:
        raise ConfigError(f"{path}: without OpenSSH's client nothing follows Include", "install openssh-client")
    values = {key: value if isinstance(value, list) else [value] for key, value in found.items() if value is not None}
    values["setenv"] = values.get("setenv", [""])[0].split()
    kinds = ("rsa", "ecdsa", "ed25519")
    values.setdefault("identityfile", [f"~/.ssh/id_{kind}" for kind in kinds])
    return values


def _known_hosts_names(values: Mapping[str, Sequence[str]]) -> list[str]:
    users = values.get("userknownhostsfile") or ["~/.ssh/known_hosts ~/.ssh/known_hosts2"]
    everyones = values.get("globalknownhostsfile") or ["/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"]
    return [name for name in " ".join([*users, *everyones]).split() if name != "none"]


def _proxy_command(
    command: str | None, jump: str | None, tokens: Mapping[str, str], config_file: str | None
) -> str | None:
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
    argv = ["ssh", *(["-F", config_file] if config_file else [])]
    argv += ["-J", ",".join(before)] if before else []
    # Without a timeout of its own, the ssh to a jump host whose link is cut keeps the connection open for ever.
    argv += ["-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=2", "-W", address]
    join = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return join([*argv, "--", last if last.startswith("ssh://") else f"ssh://{last}"])


def _filled(text: str, tokens: Mapping[str, str]) -> str:
    """The text with its tokens and `${VARIABLES}` filled in; unknown ones stay."""
    # In one go: a value that is filled in may have a per cent sign of its own, as fe80::1%p2p1 has.
    return _TOKEN.sub(lambda match: _value_of(match[0], tokens), text)


def _value_of(token: str, tokens: Mapping[str, str]) -> str:
    if token.startswith("$"):
        return os.environ.get(token[2:-1], token)
    return "%" if token == "%%" else tokens.get(token, token)


def _local_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as containers have
        return ""


def _expanded(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path).expanduser()
