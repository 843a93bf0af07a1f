"""Small wheels for tests, and a folder of them in place of the package index."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from toolkit.deploy.wheels import Wheel, sha256_of


def make_wheel(folder: Path, name: str, version: str, code: str = "", requires: Sequence[str] = ()) -> Path:
    """Make a pure wheel with one module that holds `code`."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {text}\n" for text in requires)
    path = folder / f"{module}-{version}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}/__init__.py", code)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def locked(path: Path) -> Wheel:
    """A lock's entry for a file that `make_wheel` made."""
    name, version = path.name.split("-")[:2]
    return Wheel(name=name, version=version, file=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size)


def index_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this folder pip's only index."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
