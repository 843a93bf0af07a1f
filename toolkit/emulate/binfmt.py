"""The kernel's table of programs for other CPUs, and the entry by which it runs those for aarch64 in QEMU."""

from __future__ import annotations

import contextlib
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
        raise ConfigError(f"the kernel doesn't run programs for aarch64: {exc.strerror}: {line[:40]}…") from exc


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
