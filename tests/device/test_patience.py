"""Devices that never come to an end: the operation does, and says so."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.devices import target_over
from tests.support.impostors import impostor
from tests.support.pythons import script
from tests.support.servers import needs_sshd
from toolkit.agent.requests import ListReleases, Request
from toolkit.device import connect
from toolkit.device.patience import Patience
from toolkit.device.ssh.client import SshTransport
from toolkit.emulate import EmbeddedServer, PrivateSshd
from toolkit.emulate.embedded_files import FilesUnder
from toolkit.errors import NoProgress

ANSWER = json.dumps(
    {"protocol": 1, "result": {"releases": [], "pointer": {"release": None, "runtime": None, "previous": []}}}
)


def told(**event: str) -> str:
    """A line of a shell script that tells an event."""
    return f"echo '{json.dumps({'protocol': 1, 'event': event})}'"


def progress(done: str, total: str = "5", unit: str = "steps", label: str = "copy") -> str:
    """A line of a shell script that tells progress."""
    event = f'{{"type": "progress", "label": "{label}", "done": {done}, "total": {total}, "unit": "{unit}"}}'
    said = f'{{"protocol": 1, "event": {event}}}'.replace('"', '\\"')
    return f'echo "{said}"'


def for_ever(*lines: str) -> str:
    return "i=0; while :; do i=$((i+1)); " + "; ".join(lines) + "; sleep 0.05; done"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(Request, "longest_silence_s", 0.7)
    return 0.7


GOES_ON = "the same command then goes on where this one stopped"
SILENT, TALKING = "its agent said nothing", "its agent said things, but nothing came nearer to an end"
ENDLESS = {
    "nothing": ("exec sleep 60", SILENT),
    "no line end": (for_ever("printf x"), SILENT),
    "the same count": (for_ever(progress("1")), TALKING),
    "up and down": (for_ever(progress("$((i % 3))")), TALKING),
    "beyond the total": (for_ever(progress("$((i + 6))")), TALKING),
    "ever more kinds of counts": (for_ever(progress("1", label="copy $i"), progress("1", label="more $i")), TALKING),
    "a byte at a time": (for_ever(progress("$i", "1000000000", "bytes")), TALKING),
    "warnings": (for_ever(told(type="warning", text="x")), TALKING),
    "what this edgephi doesn't know": (for_ever(told(type="heartbeat")), TALKING),
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.usefixtures("short")
def test_what_is_no_progress_ends_the_operation(tmp_path: Path, kind: str) -> None:
    text, said = ENDLESS[kind]
    device = impostor(tmp_path, text)
    began = time.monotonic()
    with pytest.raises(NoProgress) as caught:
        device.ask(ListReleases())
    assert time.monotonic() - began < 20
    assert caught.value.exit_code == 7
    assert caught.value.message == f"here: no progress: {said}"
    assert (
        caught.value.hint
        == "edgephi doctor here looks at the device; the same command then goes on where this one stopped"
    )


@needs_sshd
@pytest.mark.parametrize("client", ["paramiko", "openssh"])
def test_over_ssh(tmp_path: Path, sshd: PrivateSshd, root: Path, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_over(sshd, root).model_copy(update={"transport": client})
    with connect(target) as device:
        device.ask(ListReleases())
    mute = target.model_copy(update={"python": str(script(tmp_path / "mute", "exec sleep 60"))})
    with monkeypatch.context() as patch, connect(mute) as device:
        patch.setattr(Request, "longest_silence_s", 0.7)
        with pytest.raises(NoProgress, match=f"^pi5: no progress: {SILENT}$"):
            device.ask(ListReleases())
    with connect(target) as device:
        assert device.ask(ListReleases()).releases == ()


class Mute(FilesUnder):
    """Files of a server that goes on answering, but not to what is asked about files."""

    def stat(self, path: str) -> Any:
        time.sleep(5)
        return super().stat(path)


class Tired(FilesUnder):
    """Files of a server that takes the first packet of a file at once, and each later one after a while."""

    def open(self, path: str, flags: int, attr: Any) -> Any:
        handle = super().open(path, flags, attr)
        write, taken = handle.write, iter(range(1000))

        def slowly(offset: int, data: bytes) -> int:
            time.sleep(3 if next(taken) else 0)
            return int(write(offset, data))

        handle.write = slowly
        return handle


def test_files_that_nobody_answers_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.device.ssh.files.ANSWER_S", 0.5)
    monkeypatch.setattr(EmbeddedServer, "files", Mute)
    with EmbeddedServer(tmp_path / "server") as server, closing(SshTransport(target_over(server, tmp_path))) as there:
        with pytest.raises(NoProgress) as caught:
            there.size("x")
        assert caught.value.message.endswith("no progress while reading x: no answer came in time")


def test_an_upload_that_is_taken_too_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.device.ssh.files._UPLOAD_S", 1.0)
    monkeypatch.setattr(EmbeddedServer, "files", Tired)
    (tmp_path / "file").write_bytes(bytes(5_000_000))
    with EmbeddedServer(tmp_path / "server") as server, closing(SshTransport(target_over(server, tmp_path))) as there:
        with pytest.raises(NoProgress) as caught:
            list(there.put(tmp_path / "file", "file"))
        assert caught.value.message.endswith("no progress while writing file: no answer came in time")


@pytest.mark.usefixtures("short")
def test_real_progress_gives_the_time_again(tmp_path: Path) -> None:
    counted = [f"{progress(str(count), '12')}; sleep 0.2" for count in range(1, 13)]
    device = impostor(tmp_path, "; ".join([*counted, f"echo '{ANSWER}'"]))
    began = time.monotonic()
    assert device.ask(ListReleases()).releases == ()
    assert time.monotonic() - began > 2


def test_a_program_that_stays_after_its_result_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.device.patience.ENDING_S", 0.5)
    device = impostor(tmp_path, f"echo '{ANSWER}'; exec sleep 60")
    began = time.monotonic()
    assert device.ask(ListReleases()).releases == ()
    assert time.monotonic() - began < 20


def test_time_of_a_person_does_not_count() -> None:
    given_up: list[bool] = []
    with Patience(0.3, lambda: given_up.append(True)) as patience:
        for _ in range(3):
            with patience.waiting():
                pass
            time.sleep(0.4)
        assert not patience.is_over
        with patience.waiting():
            time.sleep(0.5)
    assert patience.is_over and given_up == [True]


def test_a_slow_count_of_bytes_gives_no_more_time_than_they_take() -> None:
    with Patience(1.0, lambda: None) as patience:
        with patience.waiting():
            time.sleep(0.3)
        patience.renew(0.001)
        assert patience._left_s < 0.75
        patience.renew(60)
        assert patience._left_s == 1.0
