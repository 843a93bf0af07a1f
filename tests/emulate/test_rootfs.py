"""The parts of a root file system, and their sources. The board tests make one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.builds import follow
from toolkit.emulate import rootfs
from toolkit.emulate.rootfs import (
    Definition,
    apt_settings,
    debian_sources,
    mmdebstrap_argv,
    remove_root_file_systems,
    root_file_system,
    root_file_systems_dir,
)
from toolkit.errors import ConfigError

INDEXES = """Debian|bookworm|main|http://archive.example/debian/
Debian|bookworm|contrib|http://archive.example/debian/
Debian|bookworm-updates|main|http://archive.example/debian/
Debian|bookworm-security|main|http://security.example/debian-security/
Somebody|bookworm|main|http://somebody.example/apt/
|bookworm|main|http://never-asked.example/debian/
"""


def test_the_digest_follows_the_content_alone() -> None:
    plain = Definition()
    assert plain.digest == Definition().digest
    others = {
        replace(plain, packages=(*plain.packages, "python3-numpy")).digest,
        replace(plain, finish=(("true",),)).digest,
        replace(plain, suite="trixie").digest,
    }
    assert len(others | {plain.digest}) == 4


def test_the_command() -> None:
    argv = mmdebstrap_argv(Definition(), Path("/somewhere"), ["deb http://a.example bookworm main"], ['A::B "c"'])
    assert argv[0] == "mmdebstrap"
    assert {"--variant=extract", "--architectures=arm64", "--include=openssh-server", '--aptopt=A::B "c"'} <= set(argv)
    assert argv[-3:] == ["bookworm", "/somewhere", "deb http://a.example bookworm main"]


def test_packages_come_from_where_this_debian_has_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rootfs, "KEYRING", tmp_path / "none")
    assert debian_sources(INDEXES, "bookworm", "trixie") == [
        "deb http://archive.example/debian/ trixie main",
        "deb http://never-asked.example/debian/ trixie main",
    ]
    assert debian_sources("", "bookworm", "trixie") == []
    (tmp_path / "none").touch()
    assert debian_sources(INDEXES, "bookworm", "bookworm")[0] == (
        f"deb [signed-by={tmp_path / 'none'}] http://archive.example/debian/ bookworm main"
    )


def test_only_what_says_how_to_reach_an_archive_is_taken_over() -> None:
    dump = """APT::Architecture "amd64";
Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://proxy.example:3142";
Acquire::Check-Valid-Until "false";
Acquire::cdrom::mount "/media/cdrom/";
Acquire::IndexTargets::deb::Packages::Optional "0";
"""
    assert apt_settings(dump) == [
        'Acquire::http::Proxy "http://proxy.example:3142"',
        'Acquire::Check-Valid-Until "false"',
    ]


def test_one_that_is_made_is_found() -> None:
    folder = root_file_systems_dir() / Definition().digest
    folder.mkdir(parents=True)
    assert follow(root_file_system(Definition())) == folder
    remove_root_file_systems()
    assert not folder.exists()


def test_one_that_fails_leaves_nothing_behind_that_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "mmdebstrap").write_text('#!/bin/sh\necho "E: no such archive" >&2\nexit 25\n')
    (tools / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin:/usr/bin")
    with pytest.raises(ConfigError) as caught:
        follow(root_file_system(Definition()))
    assert caught.value.message == "mmdebstrap can't make a root file system: E: no such archive"
    assert not (root_file_systems_dir() / Definition().digest).exists()


def test_without_mmdebstrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        follow(root_file_system(Definition()))
    assert (caught.value.message, caught.value.hint) == (
        "mmdebstrap isn't installed here",
        "apt-get install mmdebstrap",
    )
