"""Fixtures for all tests. No test reads or writes the developer's own profiles, caches or reports."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from toolkit.emulate import EmbeddedServer, PrivateSshd

from tests.support.builds import BUILDS_DIR


def pytest_configure(config: pytest.Config) -> None:
    """Make the session's folder of builds; its workers inherit the variable, and the process that set it cleans up."""
    if BUILDS_DIR not in os.environ:
        os.environ[BUILDS_DIR] = folder = tempfile.mkdtemp(prefix="edgephi-builds-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


# Some systems' umask leaves folders writable for a group, and edgephi doesn't work in such an install root.
os.umask(0o022)
# Threads of torch that wait for each other give up the core to the other worker's threads: else, on a busy machine, a
# GPTQ build or a perplexity spends half its processor time in busy waiting. No result depends on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test its own working folder and edgephi folders; returns the working folder."""
    work = tmp_path / "work"
    work.mkdir()
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"EDGEPHI_{name}_DIR", str(tmp_path / name.lower()))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "200")
    return work


@pytest.fixture(scope="session")
def runtimes() -> Path:
    """The `runtimes` folder of an install root, with this machine's runtime really installed, once a session.

    The first process that asks for it installs it, and the others wait.
    """
    from tests.support.builds import alone_in, follow, session_cache
    from toolkit.catalog import Target
    from toolkit.deploy import prepare
    from toolkit.device import connect

    root = session_cache("runtime-root")
    target = Target(name="setup", transport="local", profile="local", install_root=str(root))
    with alone_in(root), connect(target) as device:
        follow(prepare(device))
    return root / "runtimes"


@pytest.fixture
def root(tmp_path: Path, runtimes: Path) -> Path:
    """The test's own install root, which holds the runtime alone."""
    folder = tmp_path / "device"
    folder.mkdir()
    (folder / "runtimes").symlink_to(runtimes)
    return folder


@pytest.fixture
def local(root: Path, tmp_path: Path) -> Path:
    """Make target `local` install into `root`; returns `root`."""
    folder = tmp_path / "config" / "targets"
    folder.mkdir(parents=True)
    (folder / "local.toml").write_text(f'transport = "local"\nprofile = "local"\ninstall_root = "{root}"\n')
    return root


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    """A real OpenSSH server, started once a process."""
    from toolkit.emulate import PrivateSshd

    with PrivateSshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The embedded SSH server, started once a process."""
    from toolkit.emulate import EmbeddedServer

    with EmbeddedServer(tmp_path_factory.mktemp("embedded")) as server:
        yield server
