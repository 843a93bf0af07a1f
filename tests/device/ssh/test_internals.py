"""The undocumented parts of paramiko that `internals` uses: they exist, they work, and no other module names them.

The package's modules are imported inside the tests: without one of these parts none of them can be.
"""

from __future__ import annotations

import ast
import inspect
import os
import socket
import struct
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko
import pytest
from packaging.requirements import Requirement

from tests.support.paths import REPO

if TYPE_CHECKING:
    from toolkit.device.ssh.client import SshTransport
    from toolkit.emulate import EmbeddedServer

INTERNALS = REPO / "toolkit/device/ssh/internals.py"
# Each part, and the feature of edgephi that needs it.
PARTS = {
    "paramiko.agent.AgentSSH._connect": "agents at sockets of their own (IdentityAgent)",
    "paramiko.common.MSG_CHANNEL_REQUEST": "telling a command that was killed from a cut link",
    "paramiko.common.MSG_USERAUTH_BANNER": "showing a server's banner at once",
    "paramiko.common.cMSG_CHANNEL_DATA": "sending many packets at once",
    "paramiko.common.cMSG_CHANNEL_REQUEST": "sending signals to commands",
    "paramiko.common.cMSG_GLOBAL_REQUEST": "asking a silent server for an answer",
    "paramiko.sftp.CMD_EXTENDED": "asking for the free space of a disk",
    "paramiko.sftp.CMD_OPEN": "opening files with a mode",
    "paramiko.sftp.CMD_WRITE": "writes whose acknowledgements all count",
    "paramiko.sftp.SFTP_FLAG_CREATE": "opening files with a mode",
    "paramiko.sftp.SFTP_FLAG_TRUNC": "opening files with a mode",
    "paramiko.sftp.SFTP_FLAG_WRITE": "opening files with a mode",
    "paramiko.Channel._handle_request": "telling a command that was killed from a cut link",
    "paramiko.Channel._wait_for_send_window": "sending many packets at once",
    "paramiko.Packetizer._trigger_rekey": "new keys in the middle of a push",
    "paramiko.SFTPClient._convert_status": "writes whose acknowledgements all count",
    "paramiko.SFTPClient._read_response": "writes whose acknowledgements all count",
    "paramiko.SFTPClient._request": "asking for the free space of a disk, opening files with a mode",
    "paramiko.Transport._channel_handler_table": "telling a command that was killed from a cut link",
    "paramiko.Transport._really_parse_kex_init": "saying what a server offers when there is nothing in common",
    "paramiko.Transport._send_user_message": "sending messages of our own: bursts of packets, signals, questions",
}
# Private attributes of an SFTP client's object, and the feature that needs each.
OF_SESSIONS = {
    "_expecting": "writes whose acknowledgements all count",
    "_lock": "writes whose acknowledgements all count",
}
# The private methods of ours that paramiko calls.
CALLED = {"_async_response": "writes whose acknowledgements all count"}
# Names without `_` that no documentation has.
UNDOCUMENTED = {
    "Channel": ("closed", "eof_received", "exit_status", "lock", "out_window_size", "remote_chanid", "status_event"),
    "SFTPClient": ("request_number",),
    "Transport": ("packetizer", "preferred_keys", "remote_version", "sock"),
}
PRIVATE = {name.rpartition(".")[2] for name in PARTS if "._" in name} | set(OF_SESSIONS) | set(CALLED)


def broken(part: str, use: str) -> str:
    return (
        f"paramiko {paramiko.__version__} has no {part} as edgephi knows it, which edgephi needs for: {use}. "
        "Find another way in toolkit/device/ssh/internals.py, or keep pyproject.toml's bound below this version"
    )


def find(name: str) -> Any:
    found: Any = paramiko
    for part in name.split(".")[1:]:
        found = getattr(found, part, None)
    return found


@pytest.mark.parametrize("name", sorted(PARTS))
def test_paramiko_has_the_part(name: str) -> None:
    assert find(name) is not None, broken(name, PARTS[name])


def test_the_installed_version_is_one_that_pyproject_allows() -> None:
    texts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["dependencies"]
    (found,) = [Requirement(text) for text in texts if Requirement(text).name == "paramiko"]
    assert any(clause.operator == "<" for clause in found.specifier), "private parts need an upper bound"
    assert found.specifier.contains(paramiko.__version__)


# --- each one at work -----------------------------------------------------------------------------------------------


@pytest.fixture
def connection(embedded: EmbeddedServer) -> Iterator[SshTransport]:
    from tests.support.servers import address_of
    from toolkit.device.ssh.client import SshTransport

    with closing(SshTransport(address_of(embedded))) as found:
        yield found


def waited(condition: Any) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


def test_objects_have_their_parts(connection: SshTransport) -> None:
    sftp = connection._files()
    for name, use in OF_SESSIONS.items():
        assert hasattr(sftp, name), broken(f"SFTPClient().{name}", use)
    for name, use in CALLED.items():
        assert name in inspect.getsource(paramiko.SFTPClient), broken(f"call of {name} in SFTPClient", use)
    made = {"Channel": sftp.get_channel(), "SFTPClient": sftp, "Transport": sftp.get_channel().get_transport()}
    for kind, names in UNDOCUMENTED.items():
        for name in names:
            assert hasattr(made[kind], name), broken(f"{kind}().{name}", "its SSH client")


def test_messages_of_our_own_are_sent_and_answered(connection: SshTransport) -> None:
    from toolkit.device.ssh.internals import GLOBAL_REQUEST, send_message

    transport = connection._link.transport
    answered = transport.completion_event = threading.Event()
    message = paramiko.Message()
    message.add_byte(GLOBAL_REQUEST)
    message.add_string("keepalive@openssh.com")
    message.add_boolean(True)
    send_message(transport, message)
    assert answered.wait(10), broken("Transport._send_user_message", PARTS["paramiko.Transport._send_user_message"])


def test_requests_of_the_server_are_heard(connection: SshTransport) -> None:
    from toolkit.device.ssh.internals import ListeningTransport

    transport = connection._link.transport
    assert isinstance(transport, ListeningTransport)
    heard: list[str] = []
    hear = type(transport).hear_request

    def listen(channel: Any, message: Any) -> bool:
        heard.append(message.get_text())
        message.rewind()
        message.get_int()
        return hear(transport, channel, message)

    transport.hear_request = listen
    assert connection.start(["sh", "-c", "exit 3"]).wait() == 3
    assert "exit-status" in heard, broken("Transport._channel_handler_table", "the exit status of commands")
    assert connection.start(["sh", "-c", "kill -TERM $$"]).wait() == 128 + 15


def test_what_the_server_offers_is_kept(connection: SshTransport) -> None:
    offered = connection._link.transport.offered
    lists = ("server_key_algo_list", "kex_algo_list", "server_encrypt_algo_list")
    for name in lists:
        assert offered.get(name), broken(f"Transport._really_parse_kex_init()['{name}']", "saying what a server offers")
    assert "ssh-ed25519" in offered["server_key_algo_list"]
    assert "aes128-gcm@openssh.com" in offered["server_encrypt_algo_list"]


def test_the_window_is_taken_from(connection: SshTransport) -> None:
    from toolkit.device.ssh.internals import window_of

    channel = connection._link.transport.open_session(timeout=10)
    take = window_of(channel)
    with channel.lock:
        before = channel.out_window_size
        taken = take(1000)
        assert (taken, channel.out_window_size) == (1000, before - 1000)
        # The window never gives more than a packet holds.
        assert 1000 < take(1 << 30) <= channel.out_max_packet_size
    channel.close()
    with channel.lock:
        assert take(1000) == 0


def test_new_keys_are_asked_for(connection: SshTransport) -> None:
    from toolkit.device.ssh.internals import ask_for_new_keys

    transport = connection._link.transport
    keys, packetizer = transport.H, transport.packetizer
    assert not packetizer.need_rekey()
    ask_for_new_keys(packetizer)
    assert packetizer.need_rekey(), broken("Packetizer._trigger_rekey", "new keys in the middle of a push")
    assert connection.start(["true"]).wait() == 0
    assert waited(lambda: keys != transport.H and not packetizer.need_rekey())


def test_our_packetizer_hides_none_of_paramikos_own_attributes() -> None:
    from toolkit.device.ssh.packets import BurstPacketizer

    here, there = socket.socketpair()
    with here, there:
        theirs = set(vars(paramiko.Packetizer(here))) | set(dir(paramiko.Packetizer))
        ours = (set(vars(BurstPacketizer(here))) - set(vars(paramiko.Packetizer(here)))) | set(vars(BurstPacketizer))
    overridden = {"REKEY_BYTES", "REKEY_PACKETS", "set_outbound_cipher", "send_message", "read_message"}
    clashes = {name for name in ours & theirs if not name.startswith("__")} - overridden
    assert not clashes, broken(f"room for {sorted(clashes)} in Packetizer", "sending many packets at once")
    wanted = {"block_engine", "aead", "iv_out"}
    assert wanted <= set(inspect.signature(paramiko.Packetizer.set_outbound_cipher).parameters)
    assert callable(paramiko.Packetizer.write_all) and callable(paramiko.Packetizer.need_rekey)


def test_requests_without_a_method_of_their_own(connection: SshTransport, embedded: EmbeddedServer) -> None:
    from toolkit.device.ssh.internals import EXTENDED, OPEN, TO_CREATE, TO_TRUNCATE, TO_WRITE, sftp_request

    sftp, path, private = connection._files(), embedded.root / "made", paramiko.SFTPAttributes()
    private.st_mode = 0o640
    with pytest.raises(FileNotFoundError):
        sftp_request(sftp, OPEN, str(path), TO_WRITE, private)
    sftp_request(sftp, OPEN, str(path), TO_WRITE | TO_CREATE, private)
    assert path.stat().st_mode & 0o777 == 0o640
    path.write_bytes(b"there")
    assert sftp_request(sftp, OPEN, str(path), TO_WRITE | TO_CREATE, private).get_binary()
    assert path.read_bytes() == b"there"
    sftp_request(sftp, OPEN, str(path), TO_WRITE | TO_TRUNCATE, private)
    assert path.read_bytes() == b""
    # tests/device/test_transport.py asks a real server this; the embedded one doesn't know the request.
    with pytest.raises(OSError, match="unsupported"):
        sftp_request(sftp, EXTENDED, "statvfs@openssh.com", "/")


def test_answers_come_later_and_refusals_among_them(
    connection: SshTransport, embedded: EmbeddedServer, tmp_path: Path
) -> None:
    from toolkit.device.ssh.upload import PipelinedWrite

    (tmp_path / "source").write_bytes(content := os.urandom(1_000_000))
    with connection._open(str(embedded.root / "arrived"), keep=False) as file, FileIO(tmp_path / "source") as source:
        upload = PipelinedWrite(connection._files(), file, 0, connection._send_all)
        first = connection._files().request_number
        while count := upload.read(source, 1 << 20):
            upload.write(count)
        assert connection._files().request_number == first + 4
        while upload.is_pending:
            upload.settle()
        assert upload.acknowledged == len(content)
    assert (embedded.root / "arrived").read_bytes() == content
    with FileIO(tmp_path / "source") as source:
        # The handle is closed: the server refuses the write, which only its later answer tells.
        upload = PipelinedWrite(connection._files(), file, 0, connection._send_all)
        upload.write(upload.read(source, 1000))
        with pytest.raises(OSError, match="Invalid handle"):
            upload.settle()


def test_agents_at_sockets_of_their_own(tmp_path: Path) -> None:
    from toolkit.device.ssh.internals import SocketAgent

    assert SocketAgent("").get_keys() == ()
    blob = paramiko.Message()
    blob.add_string("ssh-ed25519")
    blob.add_string(bytes(32))

    def serve(listener: socket.socket) -> None:
        agent, _ = listener.accept()
        with agent:
            assert agent.recv(64) == b"\0\0\0\1\x0b"
            answer = b"\x0c" + struct.pack(">I", 1)
            for part in (blob.asbytes(), b"of nobody"):
                answer += struct.pack(">I", len(part)) + part
            agent.sendall(struct.pack(">I", len(answer)) + answer)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "agent"))
        listener.listen(1)
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        agent = SocketAgent(str(tmp_path / "agent"))
        (key,) = agent.get_keys()
        agent.close()
    assert (key.blob, key.comment) == (blob.asbytes(), "of nobody")
    assert hasattr(key, "inner_key"), broken("AgentKey().inner_key", "certificates in agents")


# --- and named nowhere else -----------------------------------------------------------------------------------------


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((REPO / folder).rglob("*.py"))]
    return [path for path in found if path not in (INTERNALS, Path(__file__))]


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def defined(tree: ast.AST) -> set[str]:
    """The names that a module defines: functions, classes, variables and attributes of `self`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else set()
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_everything_that_internals_names_is_tried_here() -> None:
    tree = parsed(INTERNALS)
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("paramiko")
        for alias in node.names
    }
    assert imported - {"paramiko.agent.AgentSSH"} == {name for name in PARTS if "._" not in name}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and private(node.attr)}
    theirs = {name for name in used | defined(tree) if private(name) and (name in PRIVATE or name not in defined(tree))}
    assert theirs == PRIVATE


def test_nobody_else_names_a_private_part() -> None:
    found = []
    for path in sources("toolkit", "tests"):
        tree = parsed(path)
        own, place = defined(tree), path.relative_to(REPO)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in PRIVATE:
                # `self._lock` is a module's own name when the module assigns it.
                mine = isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr in own
                found += [] if mine else [f"{place}:{node.lineno}: .{node.attr}"]
            elif isinstance(node, ast.Constant) and node.value in PRIVATE:
                found.append(f"{place}:{node.lineno}: '{node.value}'")
    assert not found, "belongs into toolkit/device/ssh/internals.py"


def test_everybody_else_takes_what_paramiko_exports() -> None:
    """Other modules use none of paramiko's submodules, and no name that begins with `_`."""
    found = []
    for path in sources("toolkit", "tests"):
        for node in ast.walk(parsed(path)):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("paramiko"):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("paramiko.")]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "paramiko":
                names = [f"paramiko.{node.attr}"]
            found += [f"{path.relative_to(REPO)}:{node.lineno}: {name}" for name in names if not exported(name)]
    assert not found, "belongs into toolkit/device/ssh/internals.py"


def exported(name: str) -> bool:
    module, _, last = name.rpartition(".")
    return module == "paramiko" and not last.startswith("_") and not inspect.ismodule(getattr(paramiko, last, None))


def test_modules_beside_it_use_private_names_of_their_own_alone() -> None:
    """This also finds private names beyond the lists above: a name that no module of ours defines must be foreign."""
    paths = sources("toolkit/device", "toolkit/emulate")
    trees = {path: parsed(path) for path in paths}
    own = set[str]().union(*map(defined, trees.values()), defined(parsed(INTERNALS)))
    found = [
        f"{path.relative_to(REPO)}:{node.lineno}: {node.attr}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own
    ]
    assert not found, "belongs into toolkit/device/ssh/internals.py"
