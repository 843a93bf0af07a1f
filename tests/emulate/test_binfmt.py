"""The kernel's entry for aarch64 programs: the emulators that can serve, and the registration."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPO
from toolkit.emulate.binfmt import find_line, refuse_unusable, register, smallest_program
from toolkit.errors import ConfigError

EMULATOR = shutil.which("qemu-aarch64-static")
# A user namespace may have a table of its own, at first empty, since Linux 6.7.
OWN_TABLE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec")
MOUNT_TABLE = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc"
RUN_ONE = """
import sys
from pathlib import Path
from toolkit.emulate.binfmt import refuse_machine_that_runs_none, register
from toolkit.errors import ConfigError
if "register" in sys.argv:
    list(register())
try:
    refuse_machine_that_runs_none(Path(sys.argv[1]))
except ConfigError as exc:
    print(exc.message, exc.hint, sep="\\n")
    sys.exit(exc.exit_code)
"""
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


needs_emulator = pytest.mark.skipif(EMULATOR is None, reason="needs qemu-user-static")
needs_own_table = pytest.mark.skipif(
    subprocess.run([*OWN_TABLE, MOUNT_TABLE], capture_output=True, check=False).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="needs Linux 6.7 and user namespaces",
)


@needs_emulator
def test_the_smallest_program_ends_well_in_the_emulator(tmp_path: Path) -> None:
    program = tmp_path / "exit-0"
    program.write_bytes(smallest_program())
    program.chmod(0o700)
    assert subprocess.run([str(EMULATOR), program], check=False).returncode == 0


def run_one(folder: Path, *before: str, words: str = "") -> tuple[int, list[str]]:
    """Try to run a program for aarch64 from `folder` under a table of our own; the exit code, and the error's lines."""
    script = "\n".join([MOUNT_TABLE, *before, f'exec "$0" -c "$1" "$2" {words}'])
    argv = [*OWN_TABLE, script, sys.executable, RUN_ONE, str(folder)]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


@needs_own_table
def test_a_table_without_an_entry_is_noticed_before_anything_is_built(tmp_path: Path) -> None:
    code, (message, hint) = run_one(tmp_path)
    assert code == 3
    assert message == "this machine doesn't run programs for aarch64: Exec format error"
    assert hint.startswith("/proc/sys/fs/binfmt_misc/qemu-aarch64 doesn't serve this process; in a container, ")
    assert list(tmp_path.glob(".exit-0*")) == [], "nothing is left"


@needs_own_table
def test_a_folder_without_programs_is_named(tmp_path: Path) -> None:
    code, (message, hint) = run_one(tmp_path, f"mount -t tmpfs -o noexec none {tmp_path}", words="register")
    assert code == 3
    assert message == f"this machine doesn't run programs for aarch64: Permission denied: {tmp_path}"
    assert hint == "its file system is mounted noexec: name another folder in XDG_CACHE_HOME"


@needs_own_table
@needs_emulator
def test_an_emulator_that_fails_is_noticed(tmp_path: Path) -> None:
    line = find_line(Path("/usr/lib/binfmt.d"))
    assert line is not None
    broken = line.replace("/usr/libexec/qemu-binfmt/aarch64-binfmt-P", "/bin/false").replace(
        str(EMULATOR), "/bin/false"
    )
    assert broken != line
    code, (message, hint) = run_one(tmp_path, f"printf '%s' '{broken}' > /proc/sys/fs/binfmt_misc/register")
    assert (code, message) == (3, "QEMU can't run programs for aarch64: exit code 1")
    assert hint == "apt-get install --reinstall qemu-user-static"


@needs_own_table
@needs_emulator
def test_a_registration_that_serves_lets_it_run(tmp_path: Path) -> None:
    assert run_one(tmp_path, words="register") == (0, [])
