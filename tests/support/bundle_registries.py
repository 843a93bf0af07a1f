"""Registries that serve one bundle, with whatever layers and blobs a test wants them to claim."""

from __future__ import annotations

import json

from tests.support.registries import Server, reply
from toolkit.bundle import Bundle
from toolkit.bundle.registry.layout import file_layer, image_manifest
from toolkit.bundle.store import MANIFEST_NAME


def layers_of(bundle: Bundle) -> list[dict[str, object]]:
    files = [file_layer(a.path, a.sha256, a.size_bytes).model_dump() for a in bundle.manifest.artifacts]
    return [file_layer(MANIFEST_NAME, bundle.id, len(bundle.manifest_text)).model_dump(), *files]


def serving(bundle: Bundle, layers: list[dict[str, object]], **blobs: bytes) -> Server:
    """A registry with these layers in its manifest; their content comes from the bundle or from `blobs`."""
    value = json.loads(image_manifest("nano", [])) | {"layers": layers}
    known = {a.sha256: (bundle.path / a.path).read_bytes() for a in bundle.manifest.artifacts}
    known |= {bundle.id: bundle.manifest_text.encode()} | blobs

    def answer(handler: object) -> None:
        path = handler.path  # type: ignore[attr-defined]
        if "/manifests/" in path:
            reply(handler, 200, json.dumps(value).encode())  # type: ignore[arg-type]
            return
        found = known.get(path.rpartition(":")[2])
        reply(handler, 404 if found is None else 200, found or b"")  # type: ignore[arg-type]

    return Server(answer)
