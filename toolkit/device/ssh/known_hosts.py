"""OpenSSH known_hosts files: a pure parser, lookups, and appending one key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

DEFAULT_PORT = 22


@dataclass(frozen=True)
class KnownKey:
    """One line of a known_hosts file. `marker` is "", "@revoked" or "@cert-authority"."""

    file: Path
    line: int
    marker: str
    patterns: tuple[str, ...]
    key_type: str
    blob: bytes

    def names(self, host: str) -> bool:
        """Tell if the line is about `host` (`name`, or `[name]:port`)."""
        wanted = False
        for pattern in self.patterns:
            if pattern.startswith("|1|"):
                wanted |= _hashed_match(pattern, host)
            elif pattern.startswith("!"):
                if fnmatchcase(host, pattern[1:]):
                    return False
            else:
                # Brackets are part of `[host]:port`, not a set of characters.
                wanted |= host == pattern or fnmatchcase(host, pattern.replace("[", "[[]"))
        return wanted


def host_names(hostname: str, port: int, alias: str | None) -> tuple[str, ...]:
    """The names under which OpenSSH looks a host up: the port's own entry first, then the bare name."""
    if alias:
        return (alias,)
    hostname = hostname.lower()
    return (hostname,) if port == DEFAULT_PORT else (f"[{hostname}]:{port}", hostname)


def parse_known_hosts(text: str, file: Path) -> Iterator[KnownKey]:
    """Give the readable lines; OpenSSH skips the others as well."""
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        try:
            blob = base64.b64decode(fields[2], validate=True)
        except ValueError:  # binascii.Error is one; another is raised for signs beyond ASCII
            continue
        patterns = fields[0] if fields[0].startswith("|") else fields[0].lower()
        yield KnownKey(file, number, marker, tuple(patterns.split(",")), fields[1], blob)


def read_known_hosts(files: Iterable[Path]) -> list[KnownKey]:
    """Every key in the files that exist and can be read."""
    keys: list[KnownKey] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        keys += parse_known_hosts(text, file)
    return keys


def append_known_host(file: Path, host: str, key_type: str, blob: bytes) -> None:
    """Add one line; a new folder gets mode 0700, a new file 0600."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not file.exists():
        file.touch(mode=0o600)
    text = file.read_text(encoding="utf-8", errors="replace")
    gap = "\n" if text and not text.endswith("\n") else ""
    with file.open("a", encoding="utf-8") as out:
        out.write(f"{gap}{host} {key_type} {base64.b64encode(blob).decode()}\n")


def hashed(host: str) -> str:
    """The name as HashKnownHosts has it written, so that the file doesn't tell which hosts its owner uses."""
    salt = os.urandom(hashlib.sha1().digest_size)
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(_name_digest(salt, host)).decode()}"


def _hashed_match(pattern: str, host: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part) for part in pattern.split("|")[2:4])
    except ValueError:
        return False
    return hmac.compare_digest(_name_digest(salt, host), digest)


def _name_digest(salt: bytes, host: str) -> bytes:
    return hmac.new(salt, host.encode(), hashlib.sha1).digest()
