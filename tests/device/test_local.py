from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import needs_root, small_disk
from toolkit.device import Transport
from toolkit.device.local import LocalTransport
from toolkit.errors import DeviceFull


@pytest.fixture
def transport() -> Transport:
    return LocalTransport()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(os.urandom(3_000_000))
    return path


def test_a_new_file_shares_nothing_with_its_source(transport: Transport, source: Path, tmp_path: Path) -> None:
    assert list(transport.put(source, str(tmp_path / "new"))) == [3_000_000]
    assert source.stat().st_nlink == 1
    assert (tmp_path / "new").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("offset", [0, 1_000_000])
def test_putting_a_link_over_itself_leaves_the_source_whole(
    transport: Transport, source: Path, tmp_path: Path, offset: int
) -> None:
    content = source.read_bytes()
    os.link(source, tmp_path / "new")
    assert sum(transport.put(source, str(tmp_path / "new"), offset)) == 3_000_000 - offset
    assert source.read_bytes() == content


@pytest.mark.parametrize("kernel_copy", [True, False])
def test_the_content_is_copied_with_the_kernels_help_and_without(
    transport: Transport, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_copy: bool
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if not kernel_copy:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    assert sum(transport.put(source, str(tmp_path / "new"))) == 3_000_000
    assert (tmp_path / "new").read_bytes() == source.read_bytes()
    assert not (tmp_path / "new").samefile(source)


@needs_root
def test_full_disk(transport: Transport, source: Path, tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", "1m") as disk,
        pytest.raises(DeviceFull, match=rf"^this machine: disk full: needs 3 MB, .* free on {disk}$"),
    ):
        list(transport.put(source, str(disk / "new")))
