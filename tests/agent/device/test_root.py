"""The install root's file system: real disks that load no programs, or take no more files or bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.requests import ask
from tests.support.servers import needs_root
from toolkit.agent import agent_archive
from toolkit.agent.device import root as install_root
from toolkit.catalog import obstacles


@contextmanager
def disk(folder: Path, *mount: str) -> Iterator[Path]:
    """An install root with the agent on a file system of its own."""
    folder.mkdir()
    subprocess.run(["mount", *mount, str(folder)], check=True)
    try:
        (folder / "root" / "agent").mkdir(parents=True, mode=0o700)
        (folder / "root" / "agent" / "agent.pyz").write_bytes(agent_archive())
        yield folder / "root"
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def probe(root: Path) -> dict[str, Any]:
    facts: dict[str, Any] = ask(root, "probe")["result"]
    return facts


def test_a_healthy_root(root: Path) -> None:
    facts = probe(root)
    assert [facts[name] for name in ("root_error", "root_exec_error", "root_room_error")] == [None, None, None]
    assert facts["free_files"] is None or facts["free_files"] > 0
    assert not list(root.glob(".probe-*"))


def test_a_root_that_others_can_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    facts = install_root.root_access(tmp_path, None)
    assert (facts["root_error"], facts["root_mode"], facts["root_owned"]) == (None, "0777", True)
    assert not list(tmp_path.glob(".probe-*"))


@needs_root
def test_a_disk_that_is_mounted_noexec(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m,noexec", "tmpfs") as root:
        facts = probe(root)
    assert facts["root_exec_error"] == "Operation not permitted"
    assert facts["root_error"] is None
    assert facts["mount_point"] == str(tmp_path / "disk")
    assert "noexec" in facts["mount_options"].split(",")


@needs_root
def test_a_disk_with_few_inodes(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64m,nr_inodes=100", "tmpfs") as root:
        facts = probe(root)
    assert 80 < facts["free_files"] < 100
    assert facts["root_error"] is None


@needs_root
def test_space_that_cannot_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota's refusal comes by the same call; no kernel here has quotas, so a disk that is too small refuses."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", str(image)], check=True)
    with disk(tmp_path / "disk", "-o", "loop", str(image)) as root, (root / "file").open("w+b") as file:
        assert install_root.room_error(file) == "No space left on device"
        monkeypatch.setattr(install_root, "RESERVED_BYTES", 1 << 20)
        assert install_root.room_error(file) is None


def test_host_and_agent_mean_the_same_bytes() -> None:
    assert install_root.RESERVED_BYTES == obstacles.RESERVED_BYTES
