"""The signers of a target: OpenSSH's `allowed_signers` files (ssh-keygen(1)), read, added to and taken from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.catalog.public_key import PublicKey, public_key
from toolkit.catalog.target import Target, demand_signers
from toolkit.catalog.toml import is_shipped
from toolkit.config import shown
from toolkit.errors import ConfigError
from toolkit.files import PRIVATE, write_whole
from toolkit.untrusted import read_file, reason

# The purpose that a signature names: one that a key made for a mail or a commit releases no bundle.
NAMESPACE = "edgephi-bundle"
_LARGEST_BYTES = 1 << 20
# A text in double quotes may have blanks in it.
_FIELD = re.compile(r'(?:"[^"]*"|[^\s"])+')
_IDENTITY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+%/=-]*")


@dataclass(frozen=True)
class Signer:
    """One line of the file. `identities` and `options` stand as they are written there."""

    line: int
    identities: str
    options: str
    key: PublicKey
    comment: str


def parse_signers(text: str) -> Iterator[Signer]:
    """The readable lines; ssh-keygen passes over the others as well."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        fields = _FIELD.findall(line)
        for index in (1, 2):
            key = public_key(*fields[index : index + 2]) if len(fields) > index + 1 else None
            if key is not None:
                options = fields[1] if index == 2 else ""
                yield Signer(number, fields[0].strip('"'), options, key, " ".join(fields[index + 2 :]))
                break


def list_signers(target: Target) -> list[Signer]:
    """The signers of a target; none when it takes unsigned bundles. Raises ConfigError for an unreadable file."""
    file = target.signers_file
    return [] if file is None else list(parse_signers(_read(file)))


def add_signer(target: Target, identity: str, key_file: Path) -> tuple[Path, Signer]:
    """Let the holder of a key sign for a target, under a name; returns the file of signers and the new line.

    The first signer makes the file, beside the target's own, and the target's demand for signatures. Raises ConfigError
    for text that can't be an identity or a key, for a pair that is there already, and for a target whose file can't be
    changed.
    """
    if not _IDENTITY.fullmatch(identity):
        raise ConfigError(f"{identity!r} can't name a signer", "letters, digits and . _ @ + % / = - only")
    key = read_public_key(key_file)
    file = target.signers_file
    # The demand comes first: after a kill in between, the target refuses all bundles rather than taking any.
    made = file is None
    file = file or _demand(target)
    text = "" if made or not file.exists() else _read(file)
    for signer in parse_signers(text):
        if (signer.identities, signer.key) == (identity, key):
            raise ConfigError(f"{shown(file)}:{signer.line}: {identity} may sign with that key already")
    gap = "\n" if text and not text.endswith("\n") else ""
    line = f'{identity} namespaces="{NAMESPACE}" {key.text}'
    write_whole(file, f"{text}{gap}{line}\n", mode=PRIVATE)
    return file, Signer(len(text.splitlines()) + 1, identity, f'namespaces="{NAMESPACE}"', key, "")


def remove_signer(target: Target, reference: str) -> tuple[Path, Sequence[Signer]]:
    """Remove the lines of an identity or of a key's fingerprint; returns the file, and the signers left.

    When none is left the target takes no bundle any more. Raises ConfigError unless a line fits.
    """
    file = target.signers_file
    if file is None:
        raise ConfigError(f"target '{target.name}' takes unsigned bundles: it has no allowed_signers")
    text = _read(file)
    signers = list(parse_signers(text))
    gone = {signer.line for signer in signers if reference in (signer.identities, signer.key.fingerprint)}
    if not gone:
        known = ", ".join(f"{signer.identities} {signer.key.fingerprint}" for signer in signers) or "nobody"
        raise ConfigError(f"{shown(file)}: no line is {reference}'s", f"there: {known}")
    lines = text.splitlines(keepends=True)
    write_whole(file, "".join(line for number, line in enumerate(lines, 1) if number not in gone), mode=PRIVATE)
    return file, [signer for signer in signers if signer.line not in gone]


def read_public_key(file: Path) -> PublicKey:
    """The key in a `.pub` file. Raises ConfigError, also for the private half, which nobody else is to have."""
    text = _read(file.expanduser())
    if "PRIVATE KEY" in text:
        raise ConfigError(f"{shown(file)}: that is the private key", f"give the public one: {shown(file)}.pub")
    fields = text.split()
    key = public_key(*fields[:2]) if len(fields) > 1 else None
    if key is None:
        raise ConfigError(f"{shown(file)}: not an SSH public key", "one line: ssh-ed25519 AAAA… comment")
    return key


def _demand(target: Target) -> Path:
    """Write the name of a file of signers, which doesn't exist yet, into the target's file; returns its path."""
    if target.path is None or is_shipped(target.path, "targets"):
        hint = "copy it into the targets folder of your configuration first"
        raise ConfigError(f"target '{target.name}' came with edgephi and stays as it is", hint)
    file = target.path.with_name(f"{target.name}.signers")
    if file.exists():
        hint = f'look at it, then delete it, or write allowed_signers = "{file.name}" into {shown(target.path)}'
        raise ConfigError(f"{shown(file)} is there already, and the target doesn't name it", hint)
    demand_signers(target.path, file.name)
    return file


def _read(file: Path) -> str:
    try:
        return read_file(file, _LARGEST_BYTES).decode("utf-8")
    except OSError as exc:
        raise ConfigError(f"{shown(file)}: cannot be read: {reason(exc)}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{shown(file)}: not UTF-8 text (byte {exc.start})") from exc
