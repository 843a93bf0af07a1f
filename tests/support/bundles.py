"""Bundles that no runtime can load: small files and a correct manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.bundle import Artifact, Bundle, Manifest, describe_file
from toolkit.bundle.manifest import ModelRecord
from toolkit.bundle.store import write_bundle

FILES = {"model.onnx": b"graph", "model.onnx.data": b"\0" * 5000, "sub/tokenizer.json": b"{}"}


def manifest(artifacts: tuple[Artifact, ...], name: str = "nano-int4", context_tokens: int = 512) -> Manifest:
    model = ModelRecord(
        id="org/nano",
        revision="abc",
        architecture="Phi3ForCausalLM",
        weights_sha256="0" * 64,
        parameters=4_589_824,
    )
    return Manifest(
        name=name,
        artifacts=artifacts,
        model=model,
        recipe={"name": "int4-rtn-b32"},
        provider="cpu",
        context_tokens=context_tokens,
        tools={"olive-ai": "0.13.0"},
        workflow_sha256="1" * 64,
    )


def make(folder: Path, **fields: Any) -> Bundle:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return write_bundle(folder, manifest(tuple(describe_file(folder / n, n) for n in FILES), **fields))
