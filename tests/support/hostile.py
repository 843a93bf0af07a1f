"""Hostile manifests, every one of which host and device have to refuse."""

from __future__ import annotations

import json
from typing import Any

HASH = "0" * 64

PATHS = [
    # Paths that lead out of the folder.
    "/etc/passwd",
    "//host/share",
    "..",
    "../up",
    "a/../../up",
    "a/..",
    "C:/x",
    "c:x",
    "\\\\host\\share",
    "..\\up",
    "a\\b",
    # Several names for one file, or no name.
    "",
    ".",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    # Names that some system refuses, or takes for something else.
    "a:stream",
    "what?",
    "all*",
    'quo"ted',
    "a<b",
    "a|b",
    "trailing.",
    "trailing ",
    "folder./a",
    "folder /a",
    "CON",
    "con.txt",
    "NUL.tar.gz",
    "nul .txt",
    "sub/AUX",
    "com1",
    "LPT9.log",
    "COM¹",
    "CONIN$",
    "right\u202eto-left",
    "soft\u00adhyphen",
    "x" * 256,
    "/".join(["long"] * 300),
    "/".join(["a"] * 33),
    # Names of edgephi's own files.
    "manifest.json",
    "Manifest.JSON",
    "manifest.json/inside",
    "signatures/0123456789abcdef.sig",
    "SIGNATURES",
]
# Escaped in JSON; unescaped they would reach terminals and system calls.
CONTROL_PATHS = ["a\0b", "a\nb", "\x1b]0;title\x07", "a\x7f", "a\x9bb", "lone\ud800"]

SIZES: list[Any] = [-1, 1 << 40, 10**30, 1.0, 1.5, 1e400, "1", True, None, [1]]
HASHES: list[Any] = ["F" * 64, "0" * 63, "0" * 65, HASH + "\n", "g" * 64, "", "../" + "0" * 61, "٠" * 64, None, 0]

CLASHES = [
    (["a", "a"], "listed twice"),
    (["a", "b", "A"], "listed twice"),
    (["straße", "STRASSE"], "listed twice"),
    (["caf\u00e9", "cafe\u0301"], "listed twice"),
    (["a", "a/b"], "a file and a folder"),
    (["x/y/z", "X/y"], "a file and a folder"),
]

# Each text with a part of the error message about it.
TEXTS = {
    "empty": (b"", "JSON"),
    "cut off": (b"{", "JSON"),
    "a list": (b"[]", "object|dictionary"),
    "null": (b"null", "object|dictionary"),
    "latin-1": (b'{"name": "caf\xe9"}', "not UTF-8"),
    "utf-16": ('{"name": 1}'.encode("utf-16"), "not UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf{}", "BOM"),
    "a key twice": (b'{"artifacts": [], "artifacts": []}', "stands twice"),
    "not a number": (b'{"artifacts": [], "context_tokens": NaN}', "no number"),
    "deep": (b'{"recipe": ' + b"[" * 40 + b"]" * 40 + b"}", "too deep"),
    "bottomless": (b"[" * 200_000, "too deep"),
    "a number of a million digits": (b'{"context_tokens": ' + b"9" * 1_000_000 + b"}", "digits"),
    "five megabytes": (b'{"name": "' + b"x" * (5 << 20) + b'"}', "too large"),
}


def artifact(path: str = "a", size_bytes: Any = 1, sha256: Any = HASH) -> dict[str, Any]:
    return {"path": path, "size_bytes": size_bytes, "sha256": sha256}


def too_many() -> list[dict[str, Any]]:
    return [artifact(f"f{number}") for number in range(10_001)]


def manifest_text(artifacts: Any) -> str:
    """The smallest manifest that a device accepts; the host demands more fields."""
    return json.dumps({"name": "hostile", "artifacts": artifacts})
