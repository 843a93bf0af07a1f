"""The libraries of the `optimize` extra: a check that they are installed, and their versions."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from toolkit.errors import MissingExtra

# The libraries that a build is made with and a manifest records: distribution -> the name that it is imported by.
TOOLS = {
    "olive-ai": "olive",
    "onnxruntime-genai": "onnxruntime_genai",
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "transformers": "transformers",
}
_ALSO_NEEDED = {"psutil": "psutil", "datasets": "datasets", "onnx": "onnx", "onnx-ir": "onnx_ir", "optuna": "optuna"}


def require_extra() -> None:
    """Raise MissingExtra when a library that a build needs isn't there. Imports none of them."""
    for distribution, module in (TOOLS | _ALSO_NEEDED).items():
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(
                f"optimizing needs the 'optimize' extra: {distribution} isn't installed",
                "pip install 'edgephi[optimize]' -c constraints.txt",
            )


def tool_versions() -> dict[str, str]:
    """The versions of all libraries that decide a build's bytes."""
    return {distribution: metadata.version(distribution) for distribution in TOOLS}
