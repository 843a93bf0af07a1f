"""The host's side of the agent protocol, against the real agent on this machine and against things that
aren't it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.impostors import device_with_python, make_target
from toolkit.agent import agent_archive, agent_sha256
from toolkit.agent.requests import ListReleases, RollBack, TakeProbe
from toolkit.deploy.push import CHUNK_BYTES
from toolkit.device import connect
from toolkit.errors import AgentError, DeviceFull, RemoteCommandFailed
from toolkit.events import drain


def test_connecting_puts_the_agent_there_once(tmp_path: Path) -> None:
    target = make_target(tmp_path / "root")
    with connect(target) as device:
        assert device.ask(TakeProbe()).install_root == str(tmp_path / "root")
    agent = tmp_path / "root" / "agent" / f"agent-{agent_sha256()[:16]}.pyz"
    stamp = agent.stat().st_mtime_ns
    with connect(target) as device:
        device.ask(TakeProbe())
    assert agent.stat().st_mtime_ns == stamp
    assert not list(agent.parent.glob("*.tmp"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: bytes(len(whole)),
        lambda whole: whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
        lambda whole: whole[:1000],
        lambda _whole: b"",
        lambda whole: whole.replace(b"def op_hold(", b"def op_held("),
        lambda whole: whole.replace(b"import main", b"import mane"),
    ],
    ids=["zeros", "half of it zeros", "cut off", "empty", "a part changed", "its start changed"],
)
def test_an_agent_that_a_power_cut_damaged_is_sent_afresh(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    target = make_target(tmp_path / "root")
    path = tmp_path / "root" / "agent" / f"agent-{agent_sha256()[:16]}.pyz"
    with connect(target) as device:
        device.ask(TakeProbe())
        path.write_bytes(spoil(agent_archive()))
        assert device.ask(ListReleases()).releases == ()
    path.write_bytes(spoil(agent_archive()))
    with connect(target) as device:
        assert device.ask(ListReleases()).releases == ()
    assert path.read_bytes() == agent_archive()
    assert list(path.parent.iterdir()) == [path]


def test_what_stays_open_says_that_the_agent_is_whole_again(tmp_path: Path) -> None:
    with connect(make_target(tmp_path / "root")) as device:
        device.ask(TakeProbe())
        path = tmp_path / "root" / "agent" / f"agent-{agent_sha256()[:16]}.pyz"
        path.write_bytes(bytes(len(agent_archive())))
        with pytest.raises(AgentError, match=r"isn't the agent that was sent there: it has another SHA-256") as error:
            drain(device.hold([], CHUNK_BYTES))
        assert error.value.hint == "run the command again: its file there was damaged and has been sent afresh"
        drain(device.hold([], CHUNK_BYTES)).release()


def test_a_whole_agent_that_fails_is_not_started_again(tmp_path: Path) -> None:
    """The device's Python runs the agent's `settle`, and dies on every other request."""
    starts = tmp_path / "starts"
    script = f'echo x >> {starts}; case "$*" in *.tmp\\ *) exec python3 "$@";; esac; exit 3'
    with pytest.raises(RemoteCommandFailed, match=r"ended with exit code 3: it said nothing"):
        device_with_python(tmp_path, script).ask(RollBack())
    looked_settled = 2
    assert len(starts.read_text().split()) == looked_settled + 1 + looked_settled, "settled again to see if it is whole"


def test_an_agents_failure_names_the_target(tmp_path: Path) -> None:
    with connect(make_target(tmp_path / "root")) as device, pytest.raises(AgentError) as error:
        device.ask(RollBack())
    assert error.value.message == "here: there is no release to go back to"
    assert error.value.exit_code == 7


def test_a_full_device_has_its_own_error(tmp_path: Path) -> None:
    message = json.dumps({"protocol": 1, "error": {"code": "device_full", "message": "full", "hint": None}})
    with pytest.raises(DeviceFull):
        device_with_python(tmp_path, f"echo '{message}'").ask(TakeProbe())


@pytest.mark.parametrize(
    "line",
    [
        "Welcome to Ubuntu!",
        '{"protocol": 2, "result": {}}',
        '{"protocol": 1}',
        '{"protocol": 1, "result": 3}',
        "[]",
    ],
)
def test_what_is_not_the_protocol_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(AgentError, match=r"something that isn't its protocol"):
        device_with_python(tmp_path, f"echo '{line}'").ask(TakeProbe())


def test_a_silent_death_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RemoteCommandFailed) as error:
        device_with_python(tmp_path, "echo 'cannot execute binary file' >&2; exit 126").ask(TakeProbe())
    assert error.value.message == "here: the agent ended with exit code 126: cannot execute binary file"
