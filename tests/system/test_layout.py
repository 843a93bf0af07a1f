"""The layout of the repository: the places and lengths of modules and tests, and the paths that documents name."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import REPO

TOOLKIT, TESTS = REPO / "toolkit", REPO / "tests"
# Tests of whole systems, and of code that only tests and maintainers use.
NOT_MIRRORED = {"data", "maintenance", "power", "support", "system"}
# A test whose module has another name.
OTHERWISE = {"cli/test_main.py": "cli/__init__.py"}
MOST_FLAT_MODULES, MOST_LINES, MOST_NAMES = 9, 400, 10
DOCUMENTS = [
    path
    for path in [*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md"), *(REPO / "ansible").rglob("*.md")]
    if path.name not in ("CHANGELOG.md", "cli.md")
]


def modules(*folders: Path) -> list[Path]:
    """Every Python file below the folders, except those in data."""
    found = (path for folder in folders for path in folder.rglob("*.py"))
    return sorted(path for path in found if "data" not in path.relative_to(REPO).parts)


def shown(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def test_few_modules_lie_flat() -> None:
    flat = sorted(path.name for path in TOOLKIT.glob("*.py"))
    assert len(flat) <= MOST_FLAT_MODULES, flat


def test_no_module_is_too_long_to_be_read_at_once() -> None:
    lines = {shown(path): len(path.read_text().splitlines()) for path in modules(TOOLKIT, REPO / "maintenance")}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_every_package_has_its_layer() -> None:
    contracts = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = {name.removeprefix("toolkit.") for layer in layers for name in layer.split(" | ")}
    packages = {path.parent.name for path in TOOLKIT.glob("*/__init__.py")}
    flat = {path.stem for path in TOOLKIT.glob("*.py")} - {"__init__", "__main__"}
    assert named == packages | flat


def test_every_package_says_what_it_is_for() -> None:
    files = [path for path in modules(TOOLKIT) if path.name == "__init__.py" and path.parent != TOOLKIT]
    assert [shown(path) for path in files if not ast.get_docstring(ast.parse(path.read_text()))] == []


FACES = [path for path in TOOLKIT.glob("*/**/__init__.py") if "lazily(" in path.read_text()]


@pytest.mark.parametrize("face", FACES, ids=lambda face: shown(face.parent))
def test_a_face_gives_at_most_ten_names_each_from_where_it_says(face: Path) -> None:
    (block,) = (node for node in ast.parse(face.read_text()).body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert 0 < len(typed) <= MOST_NAMES
    package = importlib.import_module(shown(face.parent).replace("/", "."))
    for name, module in typed.items():
        assert module is not None
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        _ = package.nothing


def test_taking_a_name_loads_no_other_module() -> None:
    code = "import sys; from toolkit.catalog import ModelShape; print('toolkit.catalog.target' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout == "False\n"


def test_tests_mirror_the_tree() -> None:
    tests = [path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")]
    mirrored = {
        path.as_posix(): path.with_name(path.name.removeprefix("test_")).as_posix()
        for path in tests
        if path.parts[0] not in NOT_MIRRORED
    }
    assert len(mirrored) > 100
    assert OTHERWISE.keys() <= mirrored.keys()
    strays = {test: module for test, module in (mirrored | OTHERWISE).items() if not (TOOLKIT / module).is_file()}
    assert strays == {}


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it, and of the names that it takes from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_test_module_imports_another() -> None:
    found = {
        f"{shown(path)}: {name}"
        for path in modules(TESTS)
        for name in imported(path)
        if name.startswith("tests.") and any(part.startswith(("test_", "conftest")) for part in name.split("."))
    }
    assert found == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_documents_name_what_is_there(document: Path) -> None:
    text = document.read_text()
    paths = re.findall(r"`((?:toolkit|tests|maintenance|benchmarks|ansible|docs)/[\w./-]*)`", text)
    if document.name == "CONTRIBUTING.md":  # its table leaves the first folder out
        rooms = "|".join(path.parent.name for path in TOOLKIT.glob("*/__init__.py"))
        paths += [f"toolkit/{name}" for name in re.findall(rf"`((?:{rooms}|data)/[\w./-]*)`", text)]
        assert len(paths) > 30
    assert [name for name in paths if not (REPO / name).exists()] == []
    targets = re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE)
    wanted = re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE)
    assert [name for name in wanted if name not in targets] == []
