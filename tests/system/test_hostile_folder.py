"""A folder that somebody else wrote, and a user who measures a bundle in it: nothing of it runs without a word."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.bundles import make
from tests.support.commands import edgephi
from tests.support.wheels import make_wheel
from toolkit.bundle import Bundle

TRUST = " hint: read its files, then type: edgephi trust (or say --trust-folder)\n"
ASKED = "local: no hashes are locked for edgephi-speedups==1.0, on linux "


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that appears when the package, which a loopback index has, runs."""
    ran, folder = tmp_path / "ran", tmp_path / "index" / "simple" / "edgephi-speedups"
    wheel = make_wheel(folder, "edgephi-speedups", "1.0")
    # Whether an index answers is tried with pip.
    make_wheel(folder.with_name("pip"), "pip", "99.0")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("speedups.pth", f"import pathlib; pathlib.Path({str(ran)!r}).touch()\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path / "index"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        yield ran
        server.shutdown()


@pytest.fixture
def bundle(isolated: Path, tmp_path: Path) -> Bundle:
    """A bundle, in a folder whose profile `local` names another package."""
    root = tmp_path / "device"
    folder = tmp_path / "config" / "targets"
    folder.mkdir(parents=True)
    (folder / "local.toml").write_text(f'transport = "local"\nprofile = "local"\ninstall_root = "{root}"\n')
    (isolated / "profiles").mkdir()
    text = 'schema_version = 1\nextends = "local"\n[runtime]\npackages = ["edgephi-speedups==1.0"]\n'
    (isolated / "profiles/local.toml").write_text(text)
    return make(isolated / "bundle")


@pytest.mark.usefixtures("bundle")
def test_a_package_of_the_folders_profile_runs_only_after_two_words(marker: Path, isolated: Path) -> None:
    done = edgephi("bench", "./bundle")
    words = f"error: profiles/local.toml: runtime.packages: needs your trust in this folder, {isolated}\n"
    assert done.returncode == 3
    assert done.stderr.endswith(words + TRUST)
    assert "warning: profiles/local.toml is read instead of " in done.stderr
    for args in (("--trust-folder",), ()):
        done = edgephi("bench", "./bundle", *args)
        assert done.returncode == 3
        assert f"error: {ASKED}" in done.stderr
        assert ": nothing is installed\n hint: say --unlocked-packages" in done.stderr
    assert not marker.exists()
    done = edgephi("bench", "./bundle", "--unlocked-packages")
    assert marker.exists(), done.stderr


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize(("answer", "runs"), [("n", False), ("y", True)])
def test_a_question_at_a_terminal(marker: Path, answer: str, runs: bool) -> None:
    assert edgephi("trust").returncode == 0
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "toolkit", "deploy", "./bundle", "local"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as child:
        os.close(theirs)
        said = ""
        try:
            while chunk := os.read(ours, 4096):
                if "[y/N]" not in said and "[y/N]" in said + chunk.decode():
                    os.write(ours, f"{answer}\n".encode())
                said += chunk.decode()
        except OSError:  # the terminal of a child that has ended
            pass
        os.close(ours)
    assert " ".join(said.split()).count("Install what an index has? [y/N]:") == 1
    assert marker.exists() == runs
    assert child.returncode == (3 if not runs else child.returncode)
