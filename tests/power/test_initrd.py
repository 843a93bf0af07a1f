"""The first file system of an emulated machine: its archive, and the order in which drivers are loaded."""

from __future__ import annotations

import lzma
from pathlib import Path

from tests.power.initrd import Entry, cpio, depends, load_order


def module(folder: Path, name: str, needs: str, *, packed: bool = False) -> None:
    content = b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ko{'.xz' if packed else ''}"
    path.write_bytes(lzma.compress(content, lzma.FORMAT_XZ) if packed else content)


def test_a_module_comes_after_what_it_needs(tmp_path: Path) -> None:
    module(tmp_path / "net", "virtio_net", "virtio,net_failover")
    module(tmp_path / "net", "net_failover", "failover")
    module(tmp_path / "core", "failover", "")
    module(tmp_path / "virtio", "virtio", "")
    names = [path.stem for path in load_order(tmp_path, ["virtio_net"])]
    assert names == ["virtio", "failover", "net_failover", "virtio_net"]


def test_names_are_the_kernels_whatever_the_file_is_called(tmp_path: Path) -> None:
    module(tmp_path, "virtio-rng", "rng-core", packed=True)
    module(tmp_path, "rng_core", "", packed=True)
    assert [path.name for path in load_order(tmp_path, ["virtio-rng"])] == ["rng_core.ko.xz", "virtio-rng.ko.xz"]


def test_what_is_built_in_needs_no_file(tmp_path: Path) -> None:
    module(tmp_path, "virtio_blk", "virtio")
    assert [path.name for path in load_order(tmp_path, ["ext4", "virtio_blk"])] == ["virtio_blk.ko"]


def test_a_module_that_says_nothing_needs_nothing() -> None:
    assert depends(b"\x7fELF\0license=GPL\0") == []


def test_archive_entry_as_the_kernel_documents_it() -> None:
    archive = cpio([Entry("etc/motd", b"hello", 0o644)])
    head = b"070701" + b"00000001" + b"000081A4" + b"00000000" * 2 + b"00000001" + b"00000000" + b"00000005"
    head += b"00000000" * 4 + b"00000009" + b"00000000" + b"etc/motd\0"
    assert archive.startswith(head + b"\0" * (-len(head) % 4) + b"hello\0\0\0")
    assert b"TRAILER!!!" in archive
    assert len(archive) % 4 == 0
