"""The agent's one file: its content, its installation on a device, and its behaviour when it is damaged."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from toolkit.agent import agent_archive, agent_sha256
from toolkit.agent.device.main import CHILD_OPS, OPS

PARTS = zipfile.ZipFile(io.BytesIO(agent_archive()))
ARRIVAL = f"agent-{agent_sha256()[:16]}.0123.tmp"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "root" / "agent").mkdir(parents=True)
    return tmp_path / "root" / "agent"


def run(agent: Path, op: str) -> tuple[int, dict[str, Any] | None]:
    """Run an operation; returns the exit status and the last message, None without any."""
    request = json.dumps({"protocol": 1, "op": op}) + "\n"
    done = subprocess.run([sys.executable, "-u", str(agent)], input=request, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else None


@pytest.mark.parametrize("name", PARTS.namelist())
def test_it_needs_nothing_but_the_standard_library_of_python_3_9(name: str) -> None:
    tree = ast.parse(PARTS.read(name), feature_version=(3, 9))
    imported = {
        module.partition(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        if not (isinstance(node, ast.ImportFrom) and node.level == 1)
    }
    assert imported <= sys.stdlib_module_names | {"edgephi_agent", "toolkit"}


def test_it_is_the_same_file_on_every_host() -> None:
    assert sorted(PARTS.namelist()) == PARTS.namelist()
    for entry in PARTS.infolist():
        assert (entry.date_time, entry.create_system) == ((1980, 1, 1, 0, 0, 0), 3)
        assert entry.compress_type == zipfile.ZIP_STORED
        assert b"\r" not in PARTS.read(entry)


@pytest.mark.parametrize("place", sorted({*(operation.place for operation in OPS.values()), *CHILD_OPS.values()}))
def test_every_operation_has_its_function(place: str) -> None:
    part, _, name = place.partition(".")
    assert f"\ndef {name}(".encode() in PARTS.read(f"edgephi_agent/{part}.py")


def test_it_settles_durably_under_its_name_whatever_the_source_becomes(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(agent_archive())
    (folder / ARRIVAL).hardlink_to(source)
    assert run(folder / ARRIVAL, "settle")[1] == {"protocol": 1, "result": {"was_whole": False}}
    settled = folder / f"agent-{agent_sha256()[:16]}.pyz"
    assert list(folder.iterdir()) == [settled]
    assert settled.stat().st_ino != source.stat().st_ino
    assert settled.read_bytes() == agent_archive()
    (folder / ARRIVAL).write_bytes(agent_archive())
    assert run(folder / ARRIVAL, "settle")[1] == {"protocol": 1, "result": {"was_whole": True}}


def test_what_has_settled_cannot_settle_again(folder: Path) -> None:
    settled = folder / f"agent-{agent_sha256()[:16]}.pyz"
    settled.write_bytes(agent_archive())
    status, message = run(settled, "settle")
    assert status == 1 and message is not None and message["error"]["code"] == "bad_request"
    assert settled.exists()


def test_it_works_under_any_other_name(folder: Path) -> None:
    (folder / "mine.pyz").write_bytes(agent_archive())
    assert run(folder / "mine.pyz", "releases")[0] == 0


@pytest.mark.parametrize("name", ["agent-{}.pyz", "agent-{}.0123.tmp"])
def test_a_flipped_bit_in_any_part_is_noticed_before_anything_is_done(folder: Path, name: str) -> None:
    """The bit is in a docstring, so that the part still is Python: the file may start, but it does nothing."""
    agent = folder / name.format(agent_sha256()[:16])
    for entry in PARTS.infolist():
        if entry.file_size < 100 or entry.filename.endswith("__init__.py"):
            continue
        content = bytearray(agent_archive())
        content[content.index(b'"""', entry.header_offset) + 4] ^= 1
        agent.write_bytes(content)
        status, message = run(agent, "rollback")
        assert status == 1 and message is not None and message["error"]["code"] == "damaged_agent", entry.filename
    assert list(folder.parent.iterdir()) == [folder]


def test_a_python_that_is_too_old_says_so(folder: Path) -> None:
    agent = folder / "agent.pyz"
    agent.write_bytes(agent_archive())
    old = "import runpy, sys; sys.version_info = (3, 8, 10); runpy.run_path(sys.argv[1], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", old, str(agent)], stdin=subprocess.DEVNULL, capture_output=True)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (1, "old_python")
    assert error["message"] == "the agent needs Python 3.9, this is 3.8"
