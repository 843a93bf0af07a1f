"""Against a real sshd: no secret leaks, no name runs as a command, and a device's files are its user's alone."""

from __future__ import annotations

import os
import pty
import pwd
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, follow, seed_cache
from tests.support.fleets import over, write_targets
from tests.support.servers import address_of, needs_sshd
from toolkit.agent.requests import ListReleases, TakeProbe
from toolkit.catalog import Target, load_profile
from toolkit.deploy.install import install
from toolkit.deploy.push import CHUNK_BYTES
from toolkit.device import Device, connect
from toolkit.device.ssh.client import SshTransport
from toolkit.emulate import EmbeddedServer, PrivateSshd
from toolkit.errors import AgentError

NAME = "phi3-nano-int4-rtn-b32"
PASSPHRASE, TOKEN = "correct-horse-battery", "hf_staple0123456789"


@pytest.fixture(autouse=True)
def _own_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ssh_config").write_text("IdentityFile none\n")
    monkeypatch.setenv("EDGEPHI_SSH_CONFIG", str(tmp_path / "ssh_config"))
    for name in ("SSH_AUTH_SOCK", "SSH_ASKPASS", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)


# --- secrets ---


class Watch:
    """A watch on the arguments of every process, and on the environment of the agents below `root`."""

    def __init__(self, root: Path) -> None:
        self.leaks: set[str] = set()
        self.seen = 0
        self._root = os.fsencode(root)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    self._look(process)

    def _look(self, process: Path) -> None:
        arguments = (process / "cmdline").read_bytes()
        if leaked(arguments):
            self.leaks.add(f"argv: {arguments!r}")
        if self._root + b"/agent/" in arguments and b"python" in arguments:
            self.seen += 1
            if leaked(environment := (process / "environ").read_bytes()):
                self.leaks.add(f"environment: {environment!r}")


def leaked(content: bytes) -> bool:
    return PASSPHRASE.encode() in content or TOKEN.encode() in content


def on_a_terminal(*args: str) -> tuple[int, bytes]:
    """Run edgephi on a terminal, and type the passphrase when asked; returns the exit code and the output."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "toolkit", *args])
    said, answered, deadline = b"", False, time.monotonic() + 300
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # Linux reports the terminal's end so
                break
            if not data:
                break
            said += data
        if b"passphrase for " in said and not answered:
            os.write(terminal, PASSPHRASE.encode() + b"\n")
            answered = True
    else:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


@needs_sshd
def test_a_deployment_leaves_no_secret_anywhere(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed_cache(tmp_path / "cache", "int4-rtn-b32")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    watch = Watch(root)
    with PrivateSshd(tmp_path / "server") as server:
        lock = ["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSPHRASE, "-f", str(server.identity_file)]
        subprocess.run(lock, check=True, stdout=subprocess.DEVNULL)
        write_targets(tmp_path / "config" / "targets", [over(server, "pi5", root)])
        with watch.running():
            status, drawn = on_a_terminal("deploy", NAME, "pi5", "--json")
            failed, said = on_a_terminal("activate", "pi5", "nothing")
    assert status == 0, drawn
    assert b'"active": true' in drawn
    assert failed == 3 and b"no release called" in said
    assert watch.seen and not watch.leaks
    assert not leaked(drawn) and not leaked(said)
    searched = 0
    for folder in ("config", "cache", "data", "device", "home", "tmp", "work"):
        for path in (tmp_path / folder).rglob("*"):
            if path.is_file() and not path.is_symlink():
                searched += 1
                assert not leaked(path.read_bytes()), path
    assert searched > 20


def test_this_machine_as_a_target_gets_no_token(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    watch = Watch(root)
    with connect(Target(name="here", transport="local", profile="local", install_root=str(root))) as device:
        hold = follow(device.hold([], CHUNK_BYTES))
        with watch.running():
            while not watch.seen:
                time.sleep(0.01)
        hold.release()
    assert not watch.leaks


# --- names ---

MARKER = "edgephi-was-here"
NASTY = [
    f'it\'s "quoted" $(touch {MARKER}) `touch {MARKER}` ${{HOME}}',
    f"; touch {MARKER} #",
    f"a&&touch {MARKER}&b|touch {MARKER}>{MARKER}",
    f"new\nline\ntouch {MARKER}\n",
    "-c import os",
    "* ~root back\\slash\\ %s%n ünï € 😀",
]


@needs_sshd
def test_no_name_on_a_device_is_read_by_a_shell(tmp_path: Path) -> None:
    """Target files can't have such names, but the layer below doesn't rely on that."""
    login_folder = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    with PrivateSshd(tmp_path / "server") as server:
        transport = SshTransport(address_of(server))
        for name in NASTY:
            folder = tmp_path / "there" / name
            folder.mkdir(parents=True, mode=0o700)
            python = folder / "python"
            python.symlink_to(sys.executable)
            plain = Target(name="pi5", host=server.host, profile="local")
            target = plain.model_copy(update={"install_root": str(folder), "python": str(python)})
            device = Device(target, load_profile("local"), transport, dial=lambda: transport)
            assert device.ask(ListReleases()).releases == ()
            assert len(list((folder / "agent").iterdir())) == 1, name
            transport.make_dirs(str(folder / "made"))
            list(transport.put(python, str(folder / "made" / name)))
            assert transport.size(str(folder / "made" / name)) == python.stat().st_size
        transport.close()
    assert not (login_folder / MARKER).exists()
    assert not list(tmp_path.rglob(MARKER))


# --- the install root ---


def exposed(folder: Path) -> list[str]:
    """Paths whose own modes open them to other users: files to writes, folders to any access. Links don't count."""
    found = []
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        open_to_others = stat.S_IMODE(status.st_mode) & (0o022 if stat.S_ISREG(status.st_mode) else 0o077)
        if not stat.S_ISLNK(status.st_mode) and open_to_others:
            found.append(f"{path} {stat.S_IMODE(status.st_mode):04o}")
    return found


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_an_install_root_is_private_whatever_the_umask(umask: int, tmp_path: Path, runtimes: Path) -> None:
    before = os.umask(umask)
    try:
        with EmbeddedServer(tmp_path / "server") as server:
            server.root.chmod(0o755)
            root = server.root / "deep" / "edgephi"
            with connect(over(server, "pi5", root)) as device:
                device.agent.ensure()
                (root / "runtimes").symlink_to(runtimes)
                follow(install(build("int4-rtn-b32"), device))
                follow(device.hold([], CHUNK_BYTES)).release()
    finally:
        os.umask(before)
    assert {path.name for path in root.iterdir()} >= {"agent", "blobs", "incoming", "releases", "lock", "push.lock"}
    assert exposed(root.parent) == []


def test_a_runtime_is_private_too(runtimes: Path) -> None:
    assert exposed(runtimes) == []


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_an_install_root_that_others_can_write_to_is_not_worked_in(tmp_path: Path, mode: int) -> None:
    root = tmp_path / "device"
    root.mkdir()
    root.chmod(mode)
    with connect(Target(name="here", transport="local", profile="local", install_root=str(root))) as device:
        with pytest.raises(AgentError, match="can be written to by others") as caught:
            device.ask(ListReleases())
        assert caught.value.exit_code == 7 and f"chmod 700 {root}" in (caught.value.hint or "")
        assert list(root.iterdir()) == []
        root.chmod(0o700)
        assert device.ask(ListReleases()).releases == ()
        root.chmod(mode)
        with pytest.raises(AgentError, match="can be written to by others"):
            device.ask(TakeProbe())


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
def test_an_install_root_of_somebody_else_is_not_worked_in(tmp_path: Path) -> None:
    root = tmp_path / "device"
    root.mkdir(mode=0o700)
    os.chown(root, pwd.getpwnam("nobody").pw_uid, -1)
    with (
        connect(Target(name="here", transport="local", profile="local", install_root=str(root))) as device,
        pytest.raises(AgentError, match="belongs to somebody else"),
    ):
        device.ask(ListReleases())
