"""The kernel's entry for aarch64 programs: the emulators that can serve, and the registration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPO
from toolkit.emulate.binfmt import find_line, refuse_unusable, register
from toolkit.errors import ConfigError

ENTRY = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: {flags}\noffset 0\nmagic 7f454c46\n"


def test_an_entry_whose_interpreter_is_held_open_can_serve() -> None:
    refuse_unusable(ENTRY.format(flags="POF"))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (ENTRY.format(flags="PO"), "lacks flag F"),
        (ENTRY.format(flags=""), "lacks flag F"),
        (ENTRY.format(flags="POF").replace("enabled", "disabled"), "is disabled"),
    ],
)
def test_others_cant(entry: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        refuse_unusable(entry)
    assert caught.value.hint == "apt-get install --reinstall qemu-user-static"


def test_the_line_is_the_packages_own(tmp_path: Path) -> None:
    assert find_line(tmp_path) is None
    (tmp_path / "qemu-aarch64-static.conf").write_text("# a comment\n:qemu-aarch64:M::magic:mask:/usr/bin/qemu:OPF\n")
    (tmp_path / "qemu-aarch64_be.conf").write_text(":qemu-aarch64_be:M::magic:mask:/usr/bin/other:OPF\n")
    assert find_line(tmp_path) == ":qemu-aarch64:M::magic:mask:/usr/bin/qemu:OPF"


@pytest.mark.board
def test_a_registration_outlives_the_command_that_made_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from toolkit.emulate.binfmt import register; list(register())"], cwd=REPO, check=False
    )
    assert done.returncode == 0
    assert list(register()) == [], "it is there already"
