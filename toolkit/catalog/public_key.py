"""SSH public keys as OpenSSH writes them: one line, `type base64 comment`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

_KEY_TYPE = re.compile(r"(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+")


@dataclass(frozen=True)
class PublicKey:
    """A key's type, and its blob, which begins with that type."""

    key_type: str
    blob: bytes

    @property
    def text(self) -> str:
        return f"{self.key_type} {base64.b64encode(self.blob).decode()}"

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.blob)


def fingerprint(blob: bytes) -> str:
    """`SHA256:…` as ssh-keygen prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def public_key(key_type: str, encoded: str) -> PublicKey | None:
    """The key that the two fields of a line make; None when they make none."""
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    name = key_type.encode()
    begins = len(name).to_bytes(4, "big") + name
    return PublicKey(key_type, blob) if _KEY_TYPE.fullmatch(key_type) and blob.startswith(begins) else None
