"""Debian for another CPU in a folder: extracted from packages on this machine, finished inside itself, and kept.

Packages are extracted rather than installed: their scripts would take minutes in an emulated CPU, and a board that only
serves SSH and Python needs next to nothing of their work.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from toolkit.config import cache_dir
from toolkit.errors import ConfigError
from toolkit.events import Progress, Service, Step
from toolkit.files import in_turn, replaced_folder

# The packages of every root file system: a shell with its tools, Python, the library that wheels link to, and sshd.
PACKAGES = ("?essential", "python3", "python3-venv", "openssh-server", "procps", "libstdc++6")
# The board's own user, for logins.
USER, USER_ID = "pi", 1000
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
HOOKS = Path("/usr/share/mmdebstrap/hooks/merged-usr")

# This number changes whenever the code below makes something else of the same definition.
_FORMAT = 1
# Folders that are deleted at the end, like etc/resolv.conf. dpkg's own filters would take a minute for the texts; apt's
# sources and the name servers are this machine's affair.
_LEFT_OUT = ("usr/share/man", "usr/share/locale", "usr/share/doc", "usr/share/info", "etc/apt", "var/lib/apt")
# Settings of this system's apt without which it wouldn't reach its sources.
_APT_SETTINGS = re.compile(r"Acquire::(?:[a-z]+::Proxy|Check-|Retries|http|https)", re.IGNORECASE)


@dataclass(frozen=True)
class Definition:
    """The parts of a root file system. `finish` are commands that run inside it, each as words; logins over SSH need
    none of them."""

    packages: tuple[str, ...] = PACKAGES
    finish: tuple[tuple[str, ...], ...] = ()
    suite: str = "bookworm"
    architecture: str = "arm64"

    @property
    def digest(self) -> str:
        """The name in the cache: the same for the same definition, no matter which machine makes it."""
        text = repr([_FORMAT, sorted(asdict(self).items()), _LEFT_OUT, USER, USER_ID])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def root_file_systems_dir() -> Path:
    """The folder of root file systems, each under its definition's digest."""
    return cache_dir() / "emulator" / "rootfs"


def root_file_system(definition: Definition) -> Service[Path]:
    """The folder of a root file system, with root's and other users' files in it; it is made once, and then found.

    Needs root. Raises ConfigError when this machine lacks a program, or can't get packages.
    """
    folder = root_file_systems_dir() / definition.digest
    if folder.is_dir():
        return folder
    with (yield from in_turn(folder.parent / f".{definition.digest}.lock", "makes the same root file system")):
        if not folder.is_dir():
            yield Step(f"make an {definition.architecture} root file system of Debian {definition.suite}")
            # Ten thousand small files, each flushed, would take longer than making them again.
            with replaced_folder(folder, durable=False) as fresh:
                yield from _fill(definition, fresh)
    return folder


def _fill(definition: Definition, folder: Path) -> Service[None]:
    yield from _extract(definition, folder)
    for name in _LEFT_OUT:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "etc/resolv.conf").unlink(missing_ok=True)
    _add_users(folder)
    for command in definition.finish:
        yield Progress(f"inside it: {command[0]}", 0, None)
        _run_inside(folder, command)


def remove_root_file_systems() -> None:
    """Delete all root file systems; nothing may be running on one."""
    shutil.rmtree(root_file_systems_dir(), ignore_errors=True)


def mmdebstrap_argv(definition: Definition, folder: Path, sources: Sequence[str], settings: Sequence[str]) -> list[str]:
    """The command that extracts the packages into a folder, from `sources`, or without any from Debian's servers."""
    argv = ["mmdebstrap", "--mode=root", "--variant=extract", "--skip=check/qemu", "--format=directory"]
    argv += [f"--architectures={definition.architecture}", f"--hook-dir={HOOKS}"]
    argv += [f"--include={package}" for package in definition.packages]
    argv += [f"--aptopt={setting}" for setting in settings]
    return [*argv, definition.suite, str(folder), *sources]


def debian_sources(index_targets: str, release: str, suite: str) -> list[str]:
    """Lines for apt that give `suite` from the servers of this Debian's own packages; `release` is this Debian's name.

    `index_targets` has a line `origin|release|component|URI` for each index; other people's archives are left out, and
    so are updates, which nobody needs for trying a bundle.
    """
    found: dict[str, None] = {}
    for line in index_targets.splitlines():
        origin, name, component, uri = line.split("|")
        if origin in ("Debian", "") and name in (release, "stable") and component == "main":
            signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
            found[f"deb {signed}{uri} {suite} main"] = None
    return list(found)


def apt_settings(dump: str) -> list[str]:
    """The lines of `apt-config dump` with the settings by which this machine reaches an archive."""
    lines = (line.strip().removesuffix(";") for line in dump.splitlines())
    return [line for line in lines if _APT_SETTINGS.match(line) and not line.endswith('""')]


def _extract(definition: Definition, folder: Path) -> Service[None]:
    settings = apt_settings(_output("apt-config", "dump"))
    argv = mmdebstrap_argv(definition, folder, _sources(definition.suite), settings)
    said = []
    try:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError as exc:
        raise ConfigError("mmdebstrap isn't installed here", "apt-get install mmdebstrap") from exc
    with child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                said.append(line.strip())
                if line.startswith("I: "):
                    yield Progress(line.removeprefix("I: ").strip().rstrip("."), 0, None)
        except BaseException:
            # mmdebstrap then ends its own children and undoes its mounts.
            child.terminate()
            raise
    if child.returncode:
        errors = [line for line in said if line.startswith("E: ")] or said[-1:]
        raise ConfigError(
            f"mmdebstrap can't make a root file system: {'; '.join(errors) or f'exit code {child.returncode}'}",
            "can this machine reach its package archive? apt-get update tells",
        )


def _sources(suite: str) -> list[str]:
    """Lines for apt with a Debian machine's own archive, from which it may never have read `suite`; none elsewhere."""
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return []
    facts = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    if facts.get("ID") != "debian":
        return []
    columns = "$(ORIGIN)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)"
    listing = _output("apt-get", "indextargets", "--format", columns, "Created-By: Packages")
    return debian_sources(listing, facts.get("VERSION_CODENAME", ""), suite)


def _add_users(folder: Path) -> None:
    """Write Debian's accounts, and the two that packages' scripts and a first boot would add."""
    masters = folder / "usr/share/base-passwd"
    users = [
        "sshd:*:100:65534::/run/sshd:/usr/sbin/nologin",
        f"{USER}:*:{USER_ID}:{USER_ID}::/home/{USER}:/bin/bash",
    ]
    accounts = masters.joinpath("passwd.master").read_text("utf-8") + "\n".join(users) + "\n"
    groups = masters.joinpath("group.master").read_text("utf-8") + f"{USER}:*:{USER_ID}:\n"
    folder.joinpath("etc/passwd").write_text(accounts, "utf-8")
    folder.joinpath("etc/group").write_text(groups, "utf-8")
    folder.joinpath("etc/hosts").write_text("127.0.0.1 localhost\n", "utf-8")
    home = folder / "home" / USER
    home.mkdir(mode=0o700)
    os.chown(home, USER_ID, USER_ID)


def _run_inside(folder: Path, command: Sequence[str]) -> None:
    search = "/usr/sbin:/usr/bin:/sbin:/bin"
    argv = ["chroot", str(folder), *command]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={"PATH": search})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(f"'{' '.join(command)}' fails in the new root file system: {last}")


def _output(*argv: str) -> str:
    """The output of a command; '' where it isn't installed or fails."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
