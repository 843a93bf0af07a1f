"""Nothing of anybody else's reaches the terminal as it came: escape sequences, line ends in values, reordered text."""

from __future__ import annotations

import ast
import json
import os
import pty
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import REPO

VERSION = b"SSH-\x1b]0;title\x07\x1b[31m-x\r\n"
SEEN = r"\x1b]0;title\x07\x1b[31m"
NO_HANDSHAKE = f"no SSH handshake: Incompatible version ({SEEN} instead of 2.0)"
# What steers a terminal, apart from line ends: in UTF-8 a C1 character begins with the byte C2.
STEERING = [
    *(bytes([code]) for code in range(32) if code != 10),
    b"\x7f",
    *(bytes([0xC2, code]) for code in range(128, 160)),
]


def edgephi(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "toolkit", *words], capture_output=True, timeout=60, check=False)


@pytest.fixture
def escaping_port() -> Iterator[int]:
    """The port of a server whose version is made of escape sequences; it says nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                connection.sendall(VERSION)

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


@pytest.fixture
def evil(escaping_port: int, tmp_path: Path) -> int:
    """Make the target `evil` on that server; returns its port."""
    folder = tmp_path / "config" / "targets"
    folder.mkdir(parents=True)
    (folder / "evil.toml").write_text(
        f'host = "127.0.0.1"\nport = {escaping_port}\nuser = "me"\nprofile = "local"\ninstall_root = "~/x"\n'
    )
    return escaping_port


def test_a_server_that_escapes_before_its_host_key(evil: int) -> None:
    where = f"evil (127.0.0.1:{evil})"
    hint = " hint: is it an SSH server that listens there?\n"
    done = edgephi("targets", "probe", "evil")
    assert (done.returncode, done.stdout) == (7, b"")
    assert done.stderr.decode() == f"error: {where}: {NO_HANDSHAKE}\n{hint}"
    done = edgephi("doctor", "evil")
    assert done.returncode == 7
    assert f"failed   port            {where}: {NO_HANDSHAKE}\n" in done.stdout.decode()
    assert not [sign for sign in STEERING if sign in done.stdout + done.stderr]
    done = edgephi("doctor", "evil", "--json")
    (failed,) = (check for check in json.loads(done.stdout)["checks"] if check["state"] == "failed")
    assert failed["seen"].endswith("(\x1b]0;title\x07\x1b[31m instead of 2.0)")
    assert not [sign for sign in STEERING if sign in done.stdout + done.stderr]
    done = edgephi("targets", "add", "worse", "127.0.0.1", "--port", str(evil))
    assert (done.returncode, done.stdout) == (7, b"")
    assert done.stderr.decode() == f"error: worse (127.0.0.1:{evil}): {NO_HANDSHAKE}\n{hint}"


def on_a_terminal(*words: str) -> tuple[int, str]:
    """Run edgephi on a pseudo-terminal; its exit code, and all that the terminal got."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "toolkit", *words])
    said = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break
        said += part
        if not part:
            break
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode().replace("\r\n", "\n")


def test_colors_on_a_terminal_are_ours(evil: int) -> None:
    code, said = on_a_terminal("targets", "probe", "evil")
    assert code == 7
    assert f"\x1b[31m\x1b[1merror: \x1b[0mevil (127.0.0.1:{evil}): {NO_HANDSHAKE}\n" in said
    assert "\x1b]" not in said


HOSTILE_PROFILE = r"""
schema_version = 1
extends = "local"
description = "nice \u001b]0;title\u0007\u001b[31m board\nerror: forged \u009b1m \u202egnp"
"""


def test_a_profile_whose_description_escapes(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "profiles"
    folder.mkdir(parents=True)
    (folder / "evil.toml").write_text(HOSTILE_PROFILE)
    done = edgephi("profiles", "show", "evil")
    assert done.returncode == 0
    assert (
        r" description            nice \x1b]0;title\x07\x1b[31m board\nerror: forged \x9b1m \u202egnp "
        in done.stdout.decode()
    )
    for form, written in (("--json", "\\u009b1m \\u202egnp"), ("--toml", "\\u009b1m \\u202egnp")):
        done = edgephi("profiles", "show", "evil", form)
        assert done.returncode == 0
        assert written in done.stdout.decode()
        assert not [sign for sign in STEERING if sign in done.stdout]


def test_a_forged_line_in_an_error_stands_below_the_error(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "profiles"
    folder.mkdir(parents=True)
    (folder / "evil.toml").write_text('schema_version = 1\nextends = "local"\n"\\u001b[2J\\nerror: forged" = 1\n')
    done = edgephi("profiles", "show", "evil")
    assert done.returncode == 3
    lines = done.stderr.decode().split("\n")
    assert lines[0].startswith("error: ") and lines[1].startswith("       error: forged"), lines
    assert not [sign for sign in STEERING if sign in done.stderr]


@pytest.mark.parametrize(
    "words",
    [
        ("deploy", "--no\x1b[31m\nerror: forged"),
        ("x\x1b[31m\nerror: forged",),
        ("profiles", "show", "x\x1b[31m\nerror: forged"),
        ("targets", "add", "x", "y", "--port", "x\x1b[31m\nerror: forged"),
        ("plan", "phi3-nano", "x\x1b[31m\nerror: forged"),
        ("bench", "x\x9b31m\x85error: forged"),
        ("bench", os.fsdecode(b"\xff\xfe")),
    ],
)
def test_words_that_were_typed_are_shown_as_they_are(words: tuple[str, ...]) -> None:
    done = edgephi(*words)
    assert done.returncode in (2, 3)
    assert rb"\x" in done.stderr or rb"\udcff\udcfe" in done.stderr
    assert not [sign for sign in STEERING if sign in done.stdout + done.stderr]
    assert len([line for line in done.stderr.split(b"\n") if line.lower().startswith(b"error:")]) == 1


def test_a_standard_output_without_unicode_gets_escapes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", "models", "list"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\u2013" in done.stdout


@pytest.mark.parametrize(
    ("piped", "words"),
    [
        (b"Who was No\xe4h?", "Error: the prompt on stdin isn't UTF-8 text: byte 10 is 0xe4\n"),
        (b"\xff\xfeW\0h\0o\0", "Error: the prompt on stdin isn't UTF-8 text: byte 0 is 0xff\n"),
        (b"a" * (4 << 20) + b"b", "Error: the prompt on stdin is longer than 4,194,304 bytes\n"),
    ],
)
@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_a_prompt_that_is_no_text(piped: bytes, words: str, locale: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", "chat", "local"],
        input=piped,
        capture_output=True,
        env={**os.environ, "LC_ALL": locale},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().endswith(words)


# Only `render` writes to the terminal: whatever is written passes `visible` there.
WRITERS = {"echo", "secho", "echo_via_pager", "confirm", "prompt", "print", "input", "getpass", "write", "writelines"}


def test_only_render_writes_to_the_terminal() -> None:
    found = []
    for file in sorted((REPO / "toolkit" / "cli").glob("*.py")):
        if file.name == "render.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "attr", getattr(called, "id", ""))
            if name in WRITERS or name in ("Console", "progressbar"):
                found.append(f"{file.name}:{node.lineno}: {ast.unparse(called)}")
    assert found == []


def test_services_write_to_no_terminal() -> None:
    ours = [REPO / "toolkit" / name for name in ("jobs", "bench", "deploy", "device", "bundle", "metrics", "catalog")]
    found = [
        f"{file.name}:{node.lineno}"
        for folder in ours
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
    ]
    assert found == []
