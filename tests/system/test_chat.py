"""`edgephi chat` as people type it: at a terminal, through a pipe, over every way to a device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, follow, interruptible
from tests.support.chat_templates import PHI3_MEDIUM, RAISES, put_template
from tests.support.commands import edgephi
from tests.support.devices import target_at
from tests.support.servers import needs_sshd
from tests.support.terminals import CTRL_C, CTRL_D, Terminal, terminal
from toolkit.cli.chat import _read_prompt
from toolkit.deploy import deploy
from toolkit.device import connect
from toolkit.emulate import PrivateSshd

QUESTION = "And it came to pass in those days."
# Sampled so hot, the model doesn't find an end of its own for hundreds of tokens.
ENDLESS = ("--temperature", "5", "--seed", "1", "--max-tokens", "900")
RELAY = """\
import os, socket, sys, threading
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def up():
    while data := os.read(0, 65536): sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := sock.recv(65536): os.write(1, data)
"""


@pytest.fixture
def deployed(local: Path) -> Path:
    with connect(target_at(local)) as device:
        follow(deploy(build("fp32"), device))
    return local


@pytest.fixture
def targets(deployed: Path, sshd: PrivateSshd, config: Path, tmp_path: Path) -> None:
    """Three more ways to the same device: by the built-in client, through a proxy, and by the system's ssh."""
    (tmp_path / "relay.py").write_text(RELAY)
    config.write_text(
        f"Host proxied\n  HostName {sshd.host}\n  ProxyCommand {sys.executable} {tmp_path / 'relay.py'} %h %p\n"
        "Host *\n  IdentityFile none\n"
    )
    folder = tmp_path / "config" / "targets"
    for name, host, client in (
        ("builtin", sshd.host, "paramiko"),
        ("proxied", "proxied", "paramiko"),
        ("openssh", sshd.host, "openssh"),
    ):
        (folder / f"{name}.toml").write_text(
            f'transport = "{client}"\nhost = "{host}"\nport = {sshd.port}\nuser = "{sshd.user}"\nprofile = "local"\n'
            f'identity_file = "{sshd.identity_file}"\nknown_hosts = "{sshd.known_hosts}"\ninstall_root = "{deployed}"\n'
        )


def begin(chat: Terminal) -> None:
    chat.wait_for("Ctrl-C ends an answer; an empty line or Ctrl-D ends the conversation.\n> ")


def interrupted(chat: Terminal, question: str) -> str:
    """Ask, and type Ctrl-C after the first words of the answer; returns all up to the next prompt."""
    chat.type(f"{question}\n")
    chat.wait_for(f"{question}\n")
    chat.wait_for(" ")
    chat.type(CTRL_C)
    return chat.wait_for("\n> ")


@needs_sshd
@pytest.mark.usefixtures("targets")
@pytest.mark.parametrize("target", ["local", "builtin", "proxied", "openssh"])
def test_ctrl_c_ends_an_answer_and_not_the_conversation(target: str) -> None:
    with terminal("chat", target, *ENDLESS) as chat:
        begin(chat)
        assert "; ended by Ctrl-C]" in interrupted(chat, QUESTION)
        assert "; ended by Ctrl-C]" in interrupted(chat, "And then?")
        chat.type(f"half a line{CTRL_C}")
        assert "Ctrl-D ends the conversation.\n" in chat.wait_for("conversation.\n> ")
        chat.type(CTRL_D)
        assert chat.ended() == 0


def runtime_of(root: Path) -> list[int]:
    found = subprocess.run(["pgrep", "-f", f"{root}/agent"], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in found.split()]


def test_a_second_ctrl_c_ends_the_conversation_with_a_device_that_hangs(deployed: Path) -> None:
    with terminal("chat", "local", *ENDLESS) as chat:
        begin(chat)
        chat.type(f"{QUESTION}\n")
        chat.wait_for(f"{QUESTION}\n")
        chat.wait_for(" ")
        for pid in runtime_of(deployed):
            os.kill(pid, signal.SIGSTOP)
        chat.type(CTRL_C)
        time.sleep(0.5)
        chat.type(CTRL_C)
        assert chat.ended() == 130
        assert chat.said.endswith("interrupted\n")
    deadline = time.monotonic() + 10
    while runtime_of(deployed):
        assert time.monotonic() < deadline, "the agent is still running"
        time.sleep(0.1)


def test_ctrl_c_ends_a_single_answer_and_the_command(deployed: Path) -> None:
    with interruptible("chat", "local", "--prompt", QUESTION, *ENDLESS) as process:
        assert process.stderr is not None
        assert "load the model" in process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr.read().endswith("error: interrupted\n")


def test_a_typed_line_with_a_nul_is_not_sent(deployed: Path) -> None:
    with terminal("chat", "local", "--max-tokens", "4") as chat:
        begin(chat)
        chat.type("And God\0 said\n")
        said = chat.wait_for("\n> ")
        assert "that line can't be given to a model: line 1, column 8 is a NUL character" in said
        assert "it wasn't sent" in said and "tokens in" not in said
        chat.type("And God said\n")
        assert "tokens in" in chat.wait_for("\n> ")
        chat.type("\n")
        assert chat.ended() == 0


@pytest.mark.parametrize(
    ("words", "piped", "end"),
    [
        (
            (),
            b"one\ntwo\0three",
            "Error: the prompt on stdin can't be given to a model: line 2, column 4 is a NUL character, and a model "
            "would read nothing behind it\n",
        ),
        (
            ("-p", b"caf\xe9"),
            b"",
            "Error: Invalid value for '--prompt' / '-p': line 1, column 4 is the byte 0xe9, which isn't UTF-8 text\n",
        ),
        (
            ("-p", "x", "--system", b"\xed\xa0\x80"),
            b"",
            "Error: Invalid value for '--system' / '-s': line 1, column 1 is the byte 0xed, which isn't UTF-8 text\n",
        ),
    ],
)
def test_text_that_no_tokenizer_takes_is_refused_where_it_enters(
    words: tuple[str | bytes, ...], piped: bytes, end: str
) -> None:
    command = [sys.executable, "-m", "toolkit", "chat", "local", *words]
    done = subprocess.run(command, input=piped, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().endswith(end)


def tokens_in(done: subprocess.CompletedProcess[str]) -> int:
    """The number of the prompt's tokens in what `--stats` says."""
    assert done.returncode == 0
    return int(done.stderr.rpartition("[")[2].split()[0])


@pytest.mark.parametrize("template", [PHI3_MEDIUM, RAISES])
def test_a_system_message_for_a_template_without_the_role(deployed: Path, template: str) -> None:
    put_template(deployed / "releases" / build("fp32").id, template)
    asked = ("chat", "local", "--max-tokens", "8", "--stats", "--prompt")
    done = edgephi(*asked, QUESTION, "--system", "Speak of Moses.")
    assert done.stderr.startswith(
        "> local: load the model\nwarning: this model's chat template has no system role: the system message stands "
        "before the first user turn\n  ["
    )
    folded = edgephi(*asked, f"Speak of Moses.\n\n{QUESTION}")
    assert (done.stdout, tokens_in(done)) == (folded.stdout, tokens_in(folded))
    assert tokens_in(done) > tokens_in(edgephi(*asked, QUESTION)) + 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seed", "3"), "warning: --seed has no effect without --temperature: greedy answers don't vary\n"),
        (
            ("--temperature", "0", "--top-p", "0.5", "--seed", "3"),
            "warning: --top-p and --seed have no effect without --temperature: greedy answers don't vary\n",
        ),
        (("--temperature", "0.5", "--seed", "3"), ""),
        ((), ""),
    ],
)
def test_options_without_effect_are_said(deployed: Path, options: tuple[str, ...], words: str) -> None:
    done = edgephi("chat", "local", "--prompt", QUESTION, "--max-tokens", "2", *options)
    assert done.returncode == 0
    assert done.stderr == f"{words}> local: load the model\n"


def test_only_line_ends_are_taken_off_a_prompt(deployed: Path) -> None:
    assert _read_prompt("\n    if x:\n        y  \r\n\n") == "\n    if x:\n        y  "
    asked = ("chat", "local", "--max-tokens", "2", "--stats")
    one, two, blanks = (tokens_in(edgephi(*asked, stdin=text)) for text in ("x", "x\n", "x  \n"))
    assert one == two < blanks


def test_an_answer_that_the_context_cuts_off_says_so(deployed: Path) -> None:
    path = deployed / "releases" / build("fp32").id / "genai_config.json"
    config = json.loads(path.read_text())
    config["search"]["max_length"] = 48
    path.unlink()
    path.write_text(json.dumps(config))
    done = edgephi("chat", "local", "--prompt", QUESTION, *ENDLESS)
    assert done.returncode == 0
    assert done.stderr.endswith("warning: the answer ends here: the planned context of 48 tokens is full\n")
    done = edgephi("chat", "local", "--prompt", QUESTION, "--max-tokens", "4")
    assert "full" not in done.stderr
