"""The kernel's table of programs for other CPUs, and the entry by which it runs those for aarch64 in QEMU."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import subprocess
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.events import Service, Step

ENTRY = "qemu-aarch64"
_MOUNTED = Path("/proc/sys/fs/binfmt_misc")
# The second place serves where /proc/sys is read-only.
_PLACES = (_MOUNTED, Path("/run/edgephi-binfmt_misc"))
_PACKAGED = Path("/usr/lib/binfmt.d")
_INSTALL_HINT = "apt-get install qemu-user-static"
_PACKAGE_HINT = "apt-get install --reinstall qemu-user-static"
# mov x0, #0; mov x8, #93 (exit); svc #0
_EXIT_0 = struct.pack("<3I", 0xD2800000, 0xD2800BA8, 0xD4000001)
_LOADED_AT, _HEADERS_BYTES = 0x400000, 64 + 56
_RUN_TIMEOUT_S = 60.0


def register() -> Service[None]:
    """Have the kernel run programs for aarch64, until the machine's next start; does nothing where a package did it.

    Needs root. Raises ConfigError where the kernel refuses, or QEMU's package isn't installed.
    """
    table = _table()
    entry = table / ENTRY
    if entry.exists():
        refuse_unusable(entry.read_text(encoding="utf-8"))
        return
    line = _line()
    yield Step("tell the kernel to run programs for aarch64 in QEMU")
    try:
        (table / "register").write_text(line, encoding="utf-8")
    except OSError as exc:
        message = f"the kernel doesn't run programs for aarch64: {exc.strerror}: {line[:40]}…"
        raise ConfigError(message) from exc


def refuse_machine_that_runs_none(folder: Path) -> None:
    """Run the smallest program for aarch64 from `folder`, where a board's files will lie.

    Raises ConfigError with the kernel's reason where it doesn't run. An entry of the kernel's table alone proves
    nothing: a container may see another table than the one that serves it, and a folder may be mounted noexec.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f".exit-0-{os.getpid()}"
    try:
        program.write_bytes(smallest_program())
        program.chmod(0o700)
        done = subprocess.run([program], stdin=subprocess.DEVNULL, timeout=_RUN_TIMEOUT_S, check=False)
    except OSError as exc:
        raise _runs_none(exc, folder) from exc
    except subprocess.TimeoutExpired as exc:
        raise ConfigError(f"a program for aarch64 didn't end within {_RUN_TIMEOUT_S:.0f} s", _PACKAGE_HINT) from exc
    finally:
        program.unlink(missing_ok=True)
    if done.returncode:
        raise ConfigError(f"QEMU can't run programs for aarch64: exit code {done.returncode}", _PACKAGE_HINT)


def _runs_none(exc: OSError, folder: Path) -> ConfigError:
    message = f"this machine doesn't run programs for aarch64: {exc.strerror}"
    if exc.errno == errno.EACCES:
        return ConfigError(
            f"{message}: {folder}", "its file system is mounted noexec: name another folder in XDG_CACHE_HOME"
        )
    return ConfigError(
        message,
        f"{_MOUNTED / ENTRY} doesn't serve this process; in a container, the machine below it has to run them: "
        "install qemu-user-static there",
    )


def smallest_program() -> bytes:
    """A static ELF program for aarch64 Linux of 132 bytes that ends with status 0 (System V ABI, ELF-64)."""
    size = _HEADERS_BYTES + len(_EXIT_0)
    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    entry = _LOADED_AT + _HEADERS_BYTES
    # An executable (2) for EM_AARCH64 (183) with one program header of 56 bytes after this header of 64.
    header = struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    # PT_LOAD (1), readable and executable (5), aligned to pages of 64 KiB.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOADED_AT, _LOADED_AT, size, size, 0x10000)
    return identity + header + segment + _EXIT_0


def refuse_unusable(entry: str) -> None:
    """Raise ConfigError for an entry of the table that can't serve inside a board.

    Without the flag F its interpreter would be looked for in the board's own files.
    """
    facts = dict(line.partition(" ")[::2] for line in entry.splitlines())
    if not entry.startswith("enabled"):
        raise ConfigError(f"the kernel's entry for aarch64 programs is disabled: {_MOUNTED / ENTRY}", _PACKAGE_HINT)
    if "F" not in facts.get("flags:", ""):
        raise ConfigError(f"the kernel's entry for aarch64 programs, {_MOUNTED / ENTRY}, lacks flag F", _PACKAGE_HINT)


def find_line(folder: Path) -> str | None:
    """The line by which QEMU's package registers itself; None where it isn't installed."""
    for path in sorted(folder.glob(f"{ENTRY}*.conf")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(f":{ENTRY}:"):
                return line
    return None


def _line() -> str:
    line = find_line(_PACKAGED)
    if line is None:
        raise ConfigError("QEMU's emulator of aarch64 programs isn't installed here", _INSTALL_HINT)
    return line


def _table() -> Path:
    """The folder of the kernel's table. Where it isn't mounted, as in containers, it is mounted to stay.

    Since Linux 6.7 a table that isn't mounted anywhere any more loses its entries.
    """
    for place in _PLACES:
        if (place / "register").exists():
            return place
    reasons = []
    for place in _PLACES:
        with contextlib.suppress(OSError):
            place.mkdir(exist_ok=True)
        argv = ["mount", "-t", "binfmt_misc", "binfmt_misc", str(place)]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return place
        reasons.append(done.stderr.strip())
    raise ConfigError(
        f"this machine's kernel can't be told of programs for other CPUs: {reasons[-1]}",
        "in a container, the machine below it has to do that: install qemu-user-static there",
    )
