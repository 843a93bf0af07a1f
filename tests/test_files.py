"""toolkit.files: files written whole or not at all, whatever happens in the middle; the lock between processes."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.locks import held_elsewhere
from tests.support.paths import REPO
from toolkit.errors import ConfigError
from toolkit.events import Event, Progress, Service, Step, drain
from toolkit.files import fresh_folder, in_turn, locked, put_folder, replaced_folder, write_whole

PREAMBLE = """\
import sys, time
from pathlib import Path
from toolkit.files import fresh_folder, put_file, replaced_folder
path = Path(sys.argv[1])
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed(code: str, path: Path) -> None:
    """Run a program until it tells that it is in the middle of its work, and kill it there."""
    process = begun(code, path)
    process.send_signal(signal.SIGKILL)
    process.wait()


def begun(code: str, path: Path) -> subprocess.Popen[str]:
    """Start a program, and wait until it is in the middle of its work."""
    command = [sys.executable, "-c", PREAMBLE + code, str(path)]
    env = os.environ | {"PYTHONPATH": str(REPO)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "now\n", process.stderr.read()
    return process


@pytest.mark.parametrize("content", ["ä\nb\n", b"\0\xff\r\n", ""])
def test_a_file_is_written_with_its_folder(place: Path, content: str | bytes) -> None:
    path = place / "a" / "b" / "file.toml"
    write_whole(path, "what was there before")
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(path.parent) == ["file.toml"]


def test_modes(place: Path) -> None:
    old = os.umask(0o027)
    try:
        found = []
        for mode in (None, 0o600, 0o444):
            write_whole(place / "file", "text", mode=mode)
            found.append((place / "file").stat().st_mode & 0o777)
    finally:
        os.umask(old)
    assert found == [0o640, 0o600, 0o444]


def test_the_content_and_the_rename_are_flushed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[str, bool]] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        flushed.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), (place / "file").exists()))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", spy)
    write_whole(place / "file", "text")
    (content, before), (folder, after) = flushed
    assert content.endswith(".tmp") and not before
    assert folder == str(place) and after


def test_a_kill_in_the_middle_leaves_the_old_file(place: Path) -> None:
    path = place / "file"
    write_whole(path, "old")
    killed('import os\nos.fsync = lambda _: print("now", flush=True) or time.sleep(60)\nput_file(path, "new")\n', path)
    assert path.read_text() == "old"
    (left,) = (place / name for name in names(place) if name != "file")
    write_whole(path, "newer")
    assert left.exists(), "it could be another process' that is alive"
    os.utime(left, (time.time() - 4000,) * 2)
    write_whole(path, "newest")
    assert names(place) == ["file"] and path.read_text() == "newest"


def test_what_others_call_alike_stays(place: Path) -> None:
    for name in (".file.tmp", ".file.12345678.tmp2", ".file2.12345678.tmp", "file.12345678.tmp"):
        (place / name).touch()
        os.utime(place / name, (0, 0))
    (place / ".file-12345678.part").mkdir()
    (place / ".file-12345678.part" / "mine").touch()
    before = names(place)
    write_whole(place / "file", "text")
    with replaced_folder(place / "file.d"), fresh_folder(place / "file"):
        pass
    assert names(place) == sorted([*before, "file", "file.d"])


def test_a_full_disk_leaves_the_old_file_and_is_told(place: Path) -> None:
    path = place / "file"
    write_whole(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ConfigError, match=f"{path}: cannot be written: File too large"):
            write_whole(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert names(place) == ["file"] and path.read_text() == "old"


def test_two_processes_write_one_file(place: Path) -> None:
    path = place / "file"
    code = 'print("now", flush=True)\nfor _ in range(200):\n    put_file(path, sys.argv[0] * 50_000)\n'
    writers = [begun(code, path) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert path.stat().st_size == 2 * 50_000
    assert [writer.returncode for writer in writers] == [0, 0]
    assert names(place) == ["file"]


def test_a_folder_appears_whole(place: Path) -> None:
    path = place / "a" / "folder"
    with replaced_folder(path) as fresh:
        (fresh / "sub").mkdir()
        (fresh / "sub" / "file").write_text("text")
        assert not path.exists()
    assert (path / "sub" / "file").read_text() == "text"
    assert names(path.parent) == ["folder"]


@pytest.mark.parametrize("durable", [True, False])
def test_all_in_a_folder_is_flushed_before_it_appears(
    place: Path, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()).removeprefix(str(place)))
        fsync(descriptor)

    with replaced_folder(place / "folder", durable=durable) as fresh:
        (fresh / "file").write_text("text")
        (fresh / "link").symlink_to("nowhere")
        os.mkfifo(fresh / "pipe")
        monkeypatch.setattr("os.fsync", spy)
    new = f"/{fresh.parent.name}/new"
    assert flushed == ([f"{new}/file", new, ""] if durable else [""])


def test_an_error_leaves_the_old_folder(place: Path) -> None:
    path = place / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(KeyboardInterrupt), replaced_folder(path, over_content=True) as fresh:
        (fresh / "new").touch()
        raise KeyboardInterrupt
    assert names(place) == ["folder"] and names(path) == ["old"]


def test_content_is_replaced_only_on_purpose(place: Path) -> None:
    path = place / "folder"
    path.mkdir()
    for name in ("first", "second"):
        with replaced_folder(path, over_content=True) as fresh:
            (fresh / name).touch()
        assert names(path) == [name]
    with (
        pytest.raises(ConfigError, match=f"{path}: cannot be written: Directory not empty"),
        replaced_folder(path) as fresh,
    ):
        (fresh / "third").touch()
    assert names(place) == ["folder"] and names(path) == ["second"]


def test_a_folder_that_cannot_be_made_is_told(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"), replaced_folder(place / "file" / "folder"):
        pass


def test_a_kill_in_the_middle_leaves_the_old_folder_and_the_next_one_sweeps(place: Path) -> None:
    path = place / "folder"
    with replaced_folder(path) as fresh:
        (fresh / "old").touch()
    code = 'with replaced_folder(path) as fresh:\n    (fresh / "new").touch()\n    print("now", flush=True)\n'
    killed(f"{code}    time.sleep(60)\n", path)
    assert names(path) == ["old"] and len(names(place)) == 2
    with replaced_folder(path, over_content=True) as fresh:
        assert names(fresh) == []
    assert names(place) == ["folder"] and names(path) == []


def test_a_kill_between_the_two_moves_is_mended_by_the_next(place: Path) -> None:
    path = place / "folder"
    with replaced_folder(path) as fresh:
        (fresh / "old").touch()
    code = 'Path.replace = lambda *_: print("now", flush=True) or time.sleep(60)\n'
    killed(f"{code}with replaced_folder(path, over_content=True):\n    pass\n", path)
    assert not path.exists()
    with fresh_folder(path):
        assert names(path) == ["old"]
    assert names(place) == ["folder"]


def test_a_move_that_fails_puts_the_old_folder_back(place: Path) -> None:
    path = place / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(FileNotFoundError):
        put_folder(place / "nothing", path, over_content=True)
    assert names(place) == ["folder"] and names(path) == ["old"]


def test_what_a_living_process_works_on_stays(place: Path) -> None:
    path = place / "folder"
    code = 'with replaced_folder(path) as fresh:\n    (fresh / "theirs").touch()\n    print("now", flush=True)\n'
    process = begun(f"{code}    time.sleep(60)\n", path)
    with fresh_folder(path) as one, fresh_folder(path) as two:
        assert one != two
        assert len(names(place)) == 3
    assert len(names(place)) == 1
    process.kill()
    process.wait()
    with fresh_folder(path):
        pass
    assert names(place) == []


def test_many_at_once_never_take_another_ones_folder(place: Path) -> None:
    code = (
        'print("now", flush=True)\nfor number in range(300):\n    with fresh_folder(path) as fresh:\n'
        '        (fresh / "file").touch()\n        assert [each.name for each in fresh.iterdir()] == ["file"]\n'
    )
    processes = [begun(code, place / "folder") for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == [""] * 3
    assert names(place) == []


def test_one_at_a_time(place: Path) -> None:
    path = place / "folder" / "lock"
    with locked(path, "paints"):
        with pytest.raises(ConfigError) as caught, locked(path, "paints"):
            pass
        assert (caught.value.message, caught.value.hint) == ("this process paints", "wait for it, or end it")
    with locked(path, "paints"):
        pass
    assert path.read_text() == ""


def test_who_has_a_lock_is_named_until_its_end(place: Path) -> None:
    with held_elsewhere(place / "lock") as other:
        with pytest.raises(ConfigError) as caught, locked(place / "lock", "paints", "come back"):
            pass
        assert (caught.value.message, caught.value.hint) == (f"another process ({other.pid}) paints", "come back")
    assert (place / "lock").read_text().startswith(f"{other.pid} "), "it had no time to take its name out"
    with locked(place / "lock", "paints"):
        pass


@pytest.mark.parametrize(
    ("text", "holder"),
    [("", "another process"), ("17", "another process"), ("17 elsewhere\n", "another process (17 on elsewhere)")],
)
def test_holders_that_say_something_else(place: Path, text: str, holder: str) -> None:
    path = place / "lock"
    with locked(path, "paints"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(f"{holder} paints")), locked(path, "paints"):
            pass


def test_a_lock_in_passing_leaves_no_file_and_lets_one_in_at_a_time(place: Path) -> None:
    code = (
        'from toolkit.files import locked\nfrom toolkit.errors import ConfigError\nprint("now", flush=True)\n'
        "for _ in range(300):\n    try:\n        with locked(path, 'paints', passing=True):\n"
        "            path.with_name('one').touch(exist_ok=False)\n            path.with_name('one').unlink()\n"
        "    except ConfigError:\n        pass\n"
    )
    processes = [begun(code, place / "lock") for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == [""] * 3
    assert names(place) == []


def test_where_nothing_can_be_locked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "file").touch()
    with pytest.raises(ConfigError, match="lock: cannot be locked: "), locked(place / "file" / "lock", "paints"):
        pass

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ConfigError, match="lock: cannot be locked: No locks available"), locked(place / "lock", "x"):
        pass
    with replaced_folder(place / "folder") as fresh:
        (fresh / "file").touch()
    assert names(place) == ["file", "folder", "lock"]


def test_who_waits_says_once_for_whom(place: Path) -> None:
    events: list[Event] = []

    def work() -> Service[str]:
        with (yield from in_turn(place / "lock", "paints")):
            return "done"

    with held_elsewhere(place / "lock") as other:

        def hear(event: Event) -> None:
            events.append(event)
            if len(events) == 4:
                other.kill()

        assert drain(work(), hear) == "done"
    waiting = f"wait: another process ({other.pid}) paints"
    assert events[:4] == [Step(waiting), *[Progress(waiting, 0, None)] * 3]
    assert not any(isinstance(event, Step) for event in events[1:])
    assert drain(work()) == "done"


def test_another_thread_of_this_process_is_waited_for_in_silence(place: Path) -> None:
    service = in_turn(place / "lock", "paints")
    with locked(place / "lock", "paints"):
        assert [next(service) for _ in range(2)] == [Progress("wait: this process paints", 0, None)] * 2
    service.close()
    with locked(place / "lock", "paints"):
        pass
