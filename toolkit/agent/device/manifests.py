"""Manifests and signatures as they arrive: the device distrusts them too, whatever the host has checked."""

from __future__ import annotations

import hashlib
from typing import Any

from toolkit.untrusted import (
    LARGEST_MANIFEST_BYTES,
    LARGEST_SIGNATURE_BYTES,
    MOST_ARTIFACTS,
    MOST_BYTES,
    MOST_SIGNATURES,
    artifact_problem,
    path_clash,
    read_json,
    signature_name,
)

from .protocol import HEX64, AgentFailure


def read_manifest(text: str, release: str) -> list[dict[str, Any]]:
    """The artifacts of a manifest whose hash is the release's name; every path stays inside it, on any system."""
    if not HEX64.match(release):
        raise AgentFailure("bad_request", f"not a bundle id: {release!r}")
    try:
        raw = text.encode("utf-8")
        if len(raw) > LARGEST_MANIFEST_BYTES:
            raise ValueError("too large")
        if hashlib.sha256(raw).hexdigest() != release:
            raise ValueError(f"it doesn't have the hash {release[:12]}")
        return distrust_artifacts(read_json(raw))
    except ValueError as exc:
        raise AgentFailure("corrupt", f"the manifest is refused: {exc}") from exc


def distrust_artifacts(manifest: Any) -> list[dict[str, Any]]:
    """The artifacts of a manifest. Raises ValueError unless it lists plain files, each once."""
    artifacts = manifest.get("artifacts") if isinstance(manifest, dict) else None
    if not isinstance(artifacts, list) or len(artifacts) > MOST_ARTIFACTS:
        raise ValueError(f"no list of at most {MOST_ARTIFACTS} artifacts")
    for artifact in artifacts:
        if not isinstance(artifact, dict):
            raise ValueError("an artifact that is no object")
        path, size, sha256 = (artifact.get(key) for key in ("path", "size_bytes", "sha256"))
        if not isinstance(path, str) or artifact_problem(path):
            raise ValueError(f"unsafe file {path!r:.200}")
        # A bool is an int, and a float may be one.
        if type(size) is not int or not 0 <= size < MOST_BYTES:
            raise ValueError(f"{path}: not a size: {size!r:.50}")
        if not isinstance(sha256, str) or not HEX64.match(sha256):
            raise ValueError(f"{path}: not a SHA-256: {sha256!r:.100}")
    clash = path_clash(artifact["path"] for artifact in artifacts)
    if clash:
        raise ValueError(clash)
    return artifacts


def read_signatures(signatures: dict[str, str]) -> dict[str, str]:
    """The signatures that the host wants beside a manifest, bounded. It is the host that judges them."""
    if len(signatures) > MOST_SIGNATURES:
        raise AgentFailure("bad_request", f"more than {MOST_SIGNATURES} signatures")
    for name, text in signatures.items():
        if not signature_name(name) or len(text) > LARGEST_SIGNATURE_BYTES:
            raise AgentFailure("bad_request", f"not a signature: {name!r:.200}")
    return signatures
