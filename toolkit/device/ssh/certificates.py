"""OpenSSH's certificates (PROTOCOL.certkeys): a user's to log in with, a host's to know it by."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import SSHCertificate, SSHCertificateType, SSHCertPublicKeyTypes

SUFFIX = "-cert-v01@openssh.com"
_KEY_FILE = b"openssh-key-v1\0"


def read_blob(path: Path) -> bytes | None:
    """The key or certificate in a `.pub` file, as it goes over the wire; None when it can't be read."""
    try:
        return base64.b64decode(path.read_text(encoding="utf-8").split()[1], validate=True)
    except (OSError, IndexError, ValueError):
        return None


def public_part(text: str) -> bytes | None:
    """The public key that an OpenSSH private key file holds in clear, encrypted or not; None for other files."""
    lines = [line.strip() for line in text.splitlines()]
    try:
        data = base64.b64decode("".join(line for line in lines if not line.startswith("-----")), validate=True)
    except ValueError:
        return None
    if not data.startswith(_KEY_FILE):
        return None
    rest = data[len(_KEY_FILE) :]
    for _ in ("cipher", "key derivation", "its options"):
        rest = _string(rest)[1]
    return _string(rest[4:])[0]


def certified_key(blob: bytes) -> bytes | None:
    """The plain public key that a certificate is about; None for a blob that isn't a certificate."""
    certificate = _load(blob)
    return None if certificate is None else _wire(certificate.public_key())


def host_certificate_fault(
    blob: bytes, names: Sequence[str], authorities: Iterable[bytes], algorithms: Sequence[str] = ()
) -> str | None:
    """The reason that a host's certificate doesn't prove the host to be one of `names`; None when it does.

    `authorities` are the keys that may sign it, with one of `algorithms`, unless that is empty.
    """
    certificate = _load(blob)
    if certificate is None:
        return "it can't be read"
    if _wire(certificate.signature_key()) not in set(authorities):
        return "nobody who is trusted has signed it"
    algorithm = _signature_algorithm(blob, _wire(certificate.signature_key()))
    if algorithms and algorithm not in algorithms:
        return f"it is signed with {algorithm}, which CASignatureAlgorithms leaves out"
    try:
        certificate.verify_cert_signature()
    except InvalidSignature:
        return "its signature is wrong"
    if certificate.type is not SSHCertificateType.HOST:
        return "it is a user's, not a host's"
    if certificate.critical_options:
        return "it has conditions that aren't known"
    if not certificate.valid_after <= time.time() < certificate.valid_before:
        return "it isn't valid now"
    principals = [principal.decode("utf-8", "replace") for principal in certificate.valid_principals]
    # An empty list means any host; OpenSSH takes patterns too, in which brackets stand for themselves.
    patterns = [principal.replace("[", "[[]") for principal in principals]
    if principals and not any(fnmatchcase(name, pattern) for name in names for pattern in patterns):
        return f"it is for {', '.join(principals)}"
    return None


def _load(blob: bytes) -> SSHCertificate | None:
    kind = _string(blob)[0]
    try:
        found = serialization.load_ssh_public_identity(kind + b" " + base64.b64encode(blob))
    except (ValueError, UnsupportedAlgorithm):
        return None
    return found if isinstance(found, SSHCertificate) else None


def _signature_algorithm(blob: bytes, signer: bytes) -> str:
    """The algorithm with which a certificate is signed: its last two fields are the signer's key and the signature."""
    signature = _string(blob[blob.rindex(signer) + len(signer) :])[0]
    return _string(signature)[0].decode("ascii", "replace")


def _wire(key: SSHCertPublicKeyTypes) -> bytes:
    """A key as it goes over the wire."""
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return base64.b64decode(text.split()[1])


def _string(data: bytes) -> tuple[bytes, bytes]:
    """The first string of RFC 4251, and what follows it."""
    end = 4 + int.from_bytes(data[:4], "big")
    return data[4:end], data[end:]
