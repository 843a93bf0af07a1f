"""Linux for an emulated arm64 machine, from Debian's own packages, without touching this system's apt."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.events import Service, Step

# This kernel has the drivers of virtual machines and no others.
META_PACKAGE = "linux-image-cloud-arm64"


@dataclass(frozen=True)
class Kernel:
    """The parts that boot: the kernel's image, the folder of its modules, and a static busybox."""

    image: Path
    modules: Path
    busybox: Path


def fetch_kernel(cache: Path) -> Service[Kernel]:
    """Download Debian's kernel and busybox for arm64, once into `cache`.

    Raises ConfigError when apt is missing, or can't get them.
    """
    folder = cache / "kernel"
    if not folder.is_dir():
        yield Step(f"download {META_PACKAGE} and busybox-static for arm64")
        beside = cache / ".kernel.part"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        _download(beside)
        beside.rename(folder)
    files = folder / "files"
    (image,), (modules,) = files.glob("boot/vmlinuz-*"), files.glob("lib/modules/*")
    return Kernel(image, modules, files / "bin" / "busybox")


def _download(folder: Path) -> None:
    apt = _private_apt(folder / "apt")
    _run("apt-get", *apt, "--quiet", "update", cwd=folder)
    depends = _run("apt-cache", *apt, "depends", META_PACKAGE, cwd=folder)
    (package,) = [line.split()[1] for line in depends.splitlines() if line.strip().startswith("Depends: linux-image")]
    _run("apt-get", *apt, "--quiet", "download", package, "busybox-static", cwd=folder)
    for archive in folder.glob("*.deb"):
        _run("dpkg-deb", "--extract", str(archive), str(folder / "files"), cwd=folder)
        archive.unlink()
    shutil.rmtree(folder / "apt")


def _private_apt(folder: Path) -> list[str]:
    """Options with which apt works for arm64 in a folder of its own, from the system's sources."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "Dir::State": folder,
        "Dir::State::status": folder / "status",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        # Run by root, apt would switch to a user who can't write here.
        "APT::Sandbox::User": "root",
    }
    return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]


def _run(*argv: str, cwd: Path) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    except FileNotFoundError as exc:
        raise ConfigError(f"{argv[0]} isn't installed here", "an emulated machine is made on Debian") from exc
    except subprocess.CalledProcessError as exc:
        last = (exc.stderr.strip().splitlines() or [f"exit code {exc.returncode}"])[-1]
        raise ConfigError(f"{argv[0]} can't get {META_PACKAGE} for arm64: {last}") from exc
    return done.stdout
