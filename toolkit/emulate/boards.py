"""Boards of one process tree: real aarch64 programs, this machine's kernel. They start in a second.

A board is a folder with its own files, and a detached process in namespaces of its own: when it ends, all in them end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit import localhost
from toolkit.catalog import Profile, Target, load_target
from toolkit.catalog.record import OpenRecord, read_record
from toolkit.catalog.target import remove_target, save_target
from toolkit.catalog.toml import find_toml
from toolkit.config import cache_dir, config_dir, data_path, shown
from toolkit.emulate.binfmt import refuse_machine_that_runs_none, register
from toolkit.emulate.definition import MARKER, Board, system_files
from toolkit.emulate.rootfs import USER, USER_ID, Definition, root_file_system
from toolkit.emulate.sshd import HOST, free_port, write_key_pair
from toolkit.errors import ConfigError, HostUnreachable
from toolkit.events import Progress, Service, Step
from toolkit.files import locked, replaced_folder, write_whole

TAG = "emulated"
# The library is compiled beforehand: the board can't write there, and would compile it for seconds at every use.
DEFINITION = Definition(finish=(("python3", "-m", "compileall", "-q", "/usr/lib/python3.11"),))
EMULATOR = "qemu-aarch64 in user mode: correctness only, no speed"

_SCRIPT = data_path("board.sh")
_TOOLS = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "mount": "mount", "chroot": "coreutils"}
# A quiet machine takes a second, a busy one many times that.
_START_TIMEOUT_S = 120.0
_POLL_S = 0.1


class State(OpenRecord):
    """The kept state of a board; `pid` and its start, in the kernel's ticks, name the process of the last start."""

    name: str
    board: str
    profile: str
    port: int
    pid: int | None = None
    started_ticks: int | None = None

    @property
    def running(self) -> bool:
        return self.pid is not None and start_ticks(self.pid) == self.started_ticks is not None


@dataclass(frozen=True)
class Started:
    """A running board, the target that reaches it and that target's file."""

    state: State
    target: Target
    path: Path


def boards_dir() -> Path:
    """The folder of the boards' files, each board's under its name."""
    return cache_dir() / "emulator" / "boards"


def start(board: Board, profile: Profile, name: str, port: int | None = None) -> Service[Started]:
    """Start an emulated board of that name unless it is running, and write a target that reaches it.

    The board keeps everything that was installed on it from start to start. Raises ConfigError when this machine lacks
    something or the name is taken; HostUnreachable with the board's own words when it doesn't come up.
    """
    target = _target(name, board, profile, port or 1)
    _refuse_taken(target)
    check_machine()
    folder = boards_dir() / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder / "lock", f"starts board '{name}'", "try again in a moment"):
        state = find_state(name)
        if state is not None and state.running:
            _refuse_other(state, profile, port)
            yield Step(f"{name} is running", skipped=True)
        else:
            yield from register()
            refuse_machine_that_runs_none(folder)
            root = yield from root_file_system(DEFINITION)
            kept = state.port if state is not None and _is_free(state.port) else free_port()
            state = State(name=name, board=board.name, profile=profile.name, port=port or kept)
            _write_files(folder, board, profile, state)
            yield Step(f"start {name}, port {state.port}: {EMULATOR}")
            state = yield from _power_on(folder, root, state)
    target = target.model_copy(update={"port": state.port})
    return Started(state, target, save_target(target, config_dir() / "targets", replace=True))


def stop(name: str) -> bool:
    """End a board with everything that runs on it, as a power cut does; false when it wasn't running.

    Raises ConfigError for an unknown name.
    """
    state = load_state(name)
    if not state.running:
        return False
    assert state.pid is not None
    first = _children(state.pid)
    # The board's first process is in this group too. With it the kernel ends all others, and it ends last.
    os.killpg(state.pid, signal.SIGKILL)
    while any(start_ticks(pid) is not None for pid in (state.pid, *first)):
        time.sleep(_POLL_S)
    return True


def remove(name: str) -> None:
    """Stop a board and delete its files and its target. Raises ConfigError for an unknown name."""
    stop(name)
    with contextlib.suppress(ConfigError):
        if is_ours(load_target(name)):
            remove_target(name)
    shutil.rmtree(boards_dir() / name)


def list_states() -> list[State]:
    """Every board that was ever started and not removed, by name."""
    found = (find_state(path.parent.name) for path in sorted(boards_dir().glob("*/state.json")))
    return [state for state in found if state is not None]


def find_state(name: str) -> State | None:
    """The kept state of a board; None when there never was one, or its first start was cut off before it was kept."""
    try:
        return read_record(State, boards_dir() / name / "state.json")
    except (OSError, ValueError):
        return None


def load_state(name: str) -> State:
    """The kept state of a board. Raises ConfigError when there is none of that name."""
    state = find_state(name)
    if state is None:
        known = ", ".join(state.name for state in list_states())
        raise ConfigError(f"unknown board '{name}'", f"emulated boards: {known or 'none'}")
    return state


def disk_bytes(name: str) -> int:
    """The size of a board's own files."""
    return sum(path.lstat().st_size for path in (boards_dir() / name / "home").rglob("*"))


def check_machine() -> None:
    """Raise ConfigError, saying what to type, where this machine can't emulate boards."""
    if localhost.system() != "linux" or localhost.arch() != "x86_64":
        raise ConfigError(
            f"boards are emulated on x86_64 with Linux; this machine is {localhost.arch()} with {localhost.system()}",
            "edgephi run MODEL local tries a bundle on this machine",
        )
    if os.geteuid() != 0:
        raise ConfigError(
            "emulating a board takes root: it mounts file systems",
            f"sudo {sys.executable} -m toolkit emulate …, and so for all that uses the board",
        )
    missing = {package for tool, package in _TOOLS.items() if shutil.which(tool) is None}
    if missing:
        packages = " ".join(sorted(missing))
        raise ConfigError(f"not installed here: {packages}", f"apt-get install {packages} qemu-user-static")


def sshd_config(board: Board, port: int) -> str:
    """The configuration of a board's sshd. It sets the CPU for every login: each process has an emulator of its own."""
    return f"""ListenAddress {HOST}
Port {port}
HostKey /run/edgephi/host_key
AuthorizedKeysFile /run/edgephi/authorized_keys
AllowUsers {USER}
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
LoginGraceTime 300
SetEnv QEMU_CPU={board.qemu_cpu}
Subsystem sftp internal-sftp
"""


def start_argv(name: str, root: Path, folder: Path) -> list[str]:
    """The command whose process is the board."""
    argv = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
    return [*argv, "sh", str(_SCRIPT), name, str(root), str(folder)]


def start_ticks(pid: int) -> int | None:
    """The start of a process, in ticks since the kernel's own start; None when there is none, or it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The process's name, before the last bracket, may hold blanks and brackets itself.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()]
    except OSError:
        return []


def is_ours(target: Target) -> bool:
    """Tell if a target's file is one that `start` wrote."""
    return target.identity_file == _client_key(target.name)


def _client_key(name: str) -> Path:
    return boards_dir() / name / "keys" / "client_key"


def _target(name: str, board: Board, profile: Profile, port: int) -> Target:
    return Target(
        name=name,
        host=HOST,
        user=USER,
        port=port,
        profile=profile.name,
        identity_file=_client_key(name),
        known_hosts=boards_dir() / name / "known_hosts",
        tags=(TAG, board.name),
    )


def _refuse_taken(target: Target) -> None:
    path = find_toml("targets").get(target.name)
    if path is not None and not is_ours(load_target(target.name)):
        raise ConfigError(f"target '{target.name}' exists already: {shown(path)}", "--name gives the board another one")


def _refuse_other(state: State, profile: Profile, port: int | None) -> None:
    if state.profile != profile.name or port not in (None, state.port):
        raise ConfigError(
            f"{state.name} is running as {state.profile} on port {state.port}", f"edgephi emulate stop {state.name}"
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _write_files(folder: Path, board: Board, profile: Profile, state: State) -> None:
    """Write the board's keys, which stay, and the files that it reads at each start."""
    keys = folder / "keys"
    if not keys.is_dir():
        with replaced_folder(keys) as fresh:
            fresh.chmod(0o700)
            for name in ("host_key", "client_key"):
                (fresh / f"{name}.pub").write_text(write_key_pair(fresh / name) + "\n", encoding="utf-8")
    memory = localhost.available_memory()
    available = None if memory is None else memory.available_bytes
    texts = system_files(board, profile.hardware.ram_bytes, available, EMULATOR)
    own = Path(MARKER).parent
    texts |= {
        str(own / "sshd_config"): sshd_config(board, state.port),
        str(own / "host_key"): (keys / "host_key").read_text("utf-8"),
        str(own / "authorized_keys"): (keys / "client_key.pub").read_text("utf-8"),
    }
    system = folder / "system"
    shutil.rmtree(system, ignore_errors=True)
    for name, text in texts.items():
        path = system / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600 if path.name == "host_key" else 0o644)
    known = f"[{HOST}]:{state.port} {(keys / 'host_key.pub').read_text('utf-8')}"
    (folder / "known_hosts").write_text(known, encoding="utf-8")
    home = folder / "home" / USER
    if not home.is_dir():
        home.mkdir(mode=0o700, parents=True)
        os.chown(home, USER_ID, USER_ID)


def _power_on(folder: Path, root: Path, state: State) -> Service[State]:
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            start_argv(state.name, root, folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        state = state.model_copy(update={"pid": child.pid, "started_ticks": start_ticks(child.pid)})
        _save(folder, state)
        yield from _wait_until_up(folder, child, state)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    return state


def _wait_until_up(folder: Path, child: subprocess.Popen[bytes], state: State) -> Service[None]:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, state.port), 5) as sock:
            if sock.recv(64).startswith(b"SSH-"):
                return
        yield Progress(f"{state.name} starts", 0, None)
        time.sleep(_POLL_S)
    last = next(_last_lines(folder / "log"), "it said nothing")
    raise HostUnreachable(f"{state.name} doesn't come up: {last}", f"all that it said is in {folder / 'log'}")


def _last_lines(log: Path) -> Iterator[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return (line.strip() for line in reversed(lines) if line.strip())


def _save(folder: Path, state: State) -> None:
    write_whole(folder / "state.json", state.model_dump_json(indent=1))
