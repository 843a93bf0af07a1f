"""The contract of every transport, the same for this machine, OpenSSH and the embedded server."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import random
import stat
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.servers import address_of, needs_sshd
from toolkit.device import Process, Transport
from toolkit.device.local import LocalTransport
from toolkit.device.ssh.client import SshTransport
from toolkit.device.ssh.openssh import OpenSshTransport
from toolkit.errors import DeviceError, RemoteCommandFailed

PYTHON = sys.executable


@dataclass
class Case:
    """A transport, the folder on the other side that tests write to, and the login folder."""

    kind: str
    transport: Transport
    folder: Path
    home: Path


@pytest.fixture(scope="module")
def connections() -> Iterator[dict[str, Transport]]:
    """One connection to each server for all tests: the remains of one test must not harm the next."""
    opened: dict[str, Transport] = {}
    yield opened
    for transport in opened.values():
        transport.close()


@pytest.fixture(
    params=["local", pytest.param("sshd", marks=needs_sshd), "embedded", pytest.param("openssh", marks=needs_sshd)]
)
def case(request: pytest.FixtureRequest, tmp_path: Path, connections: dict[str, Transport]) -> Case:
    if request.param == "local":
        return Case("local", LocalTransport(), tmp_path, Path.home())
    server = request.getfixturevalue("sshd" if request.param == "openssh" else request.param)
    folder = server.root / tmp_path.name
    folder.mkdir(exist_ok=True)
    home = server.root if request.param == "embedded" else Path(pwd.getpwuid(os.geteuid()).pw_dir)
    if request.param not in connections:
        client = OpenSshTransport if request.param == "openssh" else SshTransport
        connections[request.param] = client(address_of(server))
    return Case(request.param, connections[request.param], folder, home)


def run(transport: Transport, *argv: str, stdin: bytes = b"") -> tuple[int, list[bytes], Process]:
    process = transport.start(argv)
    process.send(stdin)
    process.close_stdin()
    lines = list(process.lines())
    return process.wait(), lines, process


def test_command_starts_in_the_login_folder(case: Case) -> None:
    status, lines, _ = run(case.transport, "pwd")
    assert (status, [Path(line.decode()) for line in lines]) == (0, [case.home])


@pytest.mark.parametrize(
    "argument",
    ["two words", "it's", '"hi"', "$HOME", "`id`", "a;b&c|d", "*", "~", "b\\s", "äö → €", "new\nline", ""],
)
def test_arguments_arrive_unharmed(case: Case, argument: str) -> None:
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    status, lines, _ = run(case.transport, PYTHON, "-c", script, argument, "end")
    assert status == 0
    assert json.loads(lines[0]) == [argument, "end"]


def test_arguments_of_all_sorts_arrive_unharmed(case: Case) -> None:
    """The 300 arguments are the same on every run, made of signs that shells treat specially."""
    nasty = random.Random(15)
    pieces = [
        *"'\"\\$`;&|<>(){}[]*?~#!%^=- \t\n\r",
        "$(id)",
        "${HOME}",
        "&&",
        "--",
        "\x1b",
        "é",
        "€",
        "😀",
        "a",
        "\u202e",
    ]
    arguments = ["".join(nasty.choices(pieces, k=nasty.randrange(12))) for _ in range(300)]
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    status, lines, _ = run(case.transport, PYTHON, "-c", script, *arguments)
    assert status == 0
    assert json.loads(lines[0]) == arguments


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exit_status(case: Case, status: int) -> None:
    assert run(case.transport, "sh", "-c", f"exit {status}")[0] == status


def test_status_of_a_command_killed_by_a_signal(case: Case) -> None:
    # OpenSSH's client gives the status 255 for every signal.
    assert run(case.transport, "sh", "-c", "kill -KILL $$")[0] == (255 if case.kind == "openssh" else 137)


def test_stderr_tail_is_the_last_8_kib(case: Case) -> None:
    _, _, process = run(case.transport, "sh", "-c", "seq 1 20000 >&2; echo the end >&2")
    tail = process.stderr_tail()
    assert tail.endswith("20000\nthe end\n")
    assert len(tail) == 8192


def test_large_streams_in_all_directions_do_not_deadlock(case: Case) -> None:
    script = (
        "import sys\nfor line in sys.stdin.buffer:\n    sys.stdout.buffer.write(line); sys.stderr.buffer.write(line)\n"
    )
    sent = b"".join(b"%07d " % number + b"x" * 1015 + b"\n" for number in range(12_000))
    status, lines, _ = run(case.transport, PYTHON, "-c", script, stdin=sent)
    assert status == 0
    assert b"\n".join(lines) + b"\n" == sent


def test_lines_arrive_while_the_command_runs(case: Case) -> None:
    process = case.transport.start(["sh", "-c", "echo first; read answer; echo got $answer; printf unended"])
    lines = process.lines()
    assert next(lines) == b"first"
    process.send(b"more\n")
    assert list(lines) == [b"got more", b"unended"]
    assert process.wait() == 0


def test_line_ends_of_windows_are_removed(case: Case) -> None:
    assert run(case.transport, "printf", "one\\r\\n\\r\\ntwo\\n")[1] == [b"one", b"", b"two"]


def test_command_that_does_not_read_its_stdin(case: Case) -> None:
    assert run(case.transport, "true", stdin=b"x" * 3_000_000)[0] == 0


def test_kill_ends_the_command_and_its_children(case: Case) -> None:
    marker = case.folder / "alive"
    # The child writes, since a server that can't signal (OpenSSH in root's sessions) only closes the streams.
    script = f"(while date +%N > {marker}; echo tick; do sleep 0.1; done) & wait"
    process = case.transport.start(["sh", "-c", script])
    assert next(process.lines()) == b"tick"
    started = time.monotonic()
    process.kill()
    assert process.wait() == 137
    assert time.monotonic() - started < 4
    time.sleep(0.4)
    before = marker.stat().st_mtime_ns
    time.sleep(0.4)
    assert marker.stat().st_mtime_ns == before


def test_unknown_command_is_an_error(case: Case) -> None:
    if case.kind == "local":
        with pytest.raises(RemoteCommandFailed, match="cannot start 'no-such-command'"):
            case.transport.start(["no-such-command"])
    else:
        status, _, process = run(case.transport, "no-such-command")
        assert status == 127
        assert "not found" in process.stderr_tail()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    block = hashlib.shake_256(b"seed").digest(1 << 20)
    path.write_bytes(b"".join(bytes([number]) + block for number in range(11)) + b"end")
    return path


def test_put_writes_the_whole_file(case: Case, source: Path) -> None:
    steps = list(case.transport.put(source, str(case.folder / "new.bin")))
    assert sum(steps) == source.stat().st_size
    assert (case.folder / "new.bin").read_bytes() == source.read_bytes()


def test_put_replaces_what_was_there(case: Case, source: Path) -> None:
    (case.folder / "old.bin").write_bytes(b"z" * 20_000_000)
    list(case.transport.put(source, str(case.folder / "old.bin")))
    assert (case.folder / "old.bin").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("offset", [1, 261_120, 5_000_000])
def test_put_resumes_at_an_offset(case: Case, source: Path, offset: int) -> None:
    partial = case.folder / f"partial-{offset}.bin"
    partial.write_bytes(source.read_bytes()[:offset])
    steps = list(case.transport.put(source, str(partial), offset))
    assert sum(steps) == source.stat().st_size - offset
    assert partial.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(("offset", "length"), [(0, 10), (300_000, 700_001), (5_000_000, 0)])
def test_put_of_a_range_leaves_the_rest_alone(case: Case, source: Path, offset: int, length: int) -> None:
    content, end = source.read_bytes(), offset + length
    there = case.folder / f"range-{offset}.bin"
    there.write_bytes(b"z" * 6_000_000)
    paces: list[int] = []
    assert sum(case.transport.put(source, str(there), offset, lambda _: end, paces.append)) == length
    assert there.read_bytes() == b"z" * offset + content[offset:end] + b"z" * (6_000_000 - end)
    assert sum(paces) == (0 if case.kind == "local" else length)
    new = case.folder / f"new-range-{offset}.bin"
    list(case.transport.put(source, str(new), offset, lambda _: end))
    # A write of no bytes doesn't make the file longer.
    assert new.read_bytes() == (b"\0" * offset + content[offset:end] if length else b"")


def test_put_with_nothing_left_to_send(case: Case, source: Path) -> None:
    (case.folder / "done.bin").write_bytes(source.read_bytes())
    assert sum(case.transport.put(source, str(case.folder / "done.bin"), source.stat().st_size)) == 0
    assert (case.folder / "done.bin").read_bytes() == source.read_bytes()


def test_put_of_an_empty_file(case: Case, tmp_path: Path) -> None:
    (tmp_path / "empty-source").touch()
    assert sum(case.transport.put(tmp_path / "empty-source", str(case.folder / "empty"))) == 0
    assert case.transport.size(str(case.folder / "empty")) == 0


def test_put_makes_files_that_nobody_else_can_read(case: Case, source: Path) -> None:
    before = os.umask(0)
    try:
        for name, options in (("whole", {}), ("range", {"end": lambda _: 10})):
            list(case.transport.put(source, str(case.folder / f"private-{name}"), **options))
    finally:
        os.umask(before)
    found = {name: (case.folder / f"private-{name}").stat() for name in ("whole", "range")}
    assert stat.S_IMODE(found["range"].st_mode) == 0o600
    # A hard link to this machine's file has that file's mode.
    assert stat.S_IMODE(found["whole"].st_mode) == 0o600 or found["whole"].st_ino == source.stat().st_ino


def test_put_into_a_missing_folder_names_the_file(case: Case, source: Path) -> None:
    with pytest.raises(RemoteCommandFailed, match=r"nowhere/new\.bin"):
        list(case.transport.put(source, str(case.folder / "nowhere" / "new.bin")))


def test_size(case: Case) -> None:
    (case.folder / "three").write_bytes(b"abc")
    assert case.transport.size(str(case.folder / "three")) == 3
    assert case.transport.size(str(case.folder / "none")) is None
    assert case.transport.size(str(case.folder)) is None


def test_make_dirs_is_private_and_repeatable(case: Case) -> None:
    case.folder.chmod(0o755)
    for _ in range(2):
        case.transport.make_dirs(str(case.folder / "a" / "b"))
    assert [stat.S_IMODE((case.folder / name).stat().st_mode) for name in (".", "a", "a/b")] == [
        0o755,
        0o700,
        0o700,
    ]


def test_make_dirs_over_a_file_fails(case: Case) -> None:
    (case.folder / "file").touch()
    with pytest.raises(DeviceError, match=r"file.*: [Nn]ot a "):
        case.transport.make_dirs(str(case.folder / "file"))


def test_relative_and_home_paths_count_from_the_login_folder(case: Case, source: Path) -> None:
    name = f".edgephi-test-{threading.get_native_id()}-{case.kind}"
    try:
        case.transport.make_dirs(f"~/{name}")
        list(case.transport.put(source, f"{name}/file"))
        assert case.transport.size(f"~/{name}/file") == source.stat().st_size
        assert (case.home / name / "file").is_file()
    finally:
        (case.home / name / "file").unlink(missing_ok=True)
        (case.home / name).rmdir()
