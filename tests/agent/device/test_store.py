"""The agent's store: the holders of its locks, and its state after a verify or prune that is killed at any point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.requests import LOCK, ask, deliver, fake_runtime, install

DAY_S = 24 * 3600


def pointer(root: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads((root / "current.json").read_text())
    return value


@pytest.fixture
def three(root: Path) -> list[str]:
    """Three releases that share a file, activated one after the other."""
    fake_runtime(root)
    releases = []
    for number in range(3):
        files = {"shared": b"s" * (5 << 20), "own": b"%d" % number * 100}
        releases.append(install(root, files))
        ask(root, "activate", release=releases[-1], runtime=LOCK)
    return releases


def hold(root: Path, by: str) -> subprocess.Popen[str]:
    """An agent that holds the push lock."""
    argv = [sys.executable, "-u", str(root / "agent" / "agent.pyz")]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps({"protocol": 1, "op": "hold", "by": by, "artifacts": []}) + "\n")
    process.stdin.flush()
    return process


def said(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdout
    message: dict[str, object] = json.loads(process.stdout.readline())["event"]
    return message


def test_a_held_lock_names_its_holder_and_is_free_after_a_kill(root: Path) -> None:
    first = hold(root, "anna@laptop")
    assert said(first)["type"] == "held"
    second = hold(root, "ben@desk")
    waiting = said(second)
    holder = waiting["holder"]
    assert isinstance(holder, dict)
    assert (waiting["type"], holder["by"], holder["op"]) == ("waiting", "anna@laptop", "hold")
    assert abs(holder["since_unix_s"] - time.time()) < 60
    first.kill()
    first.wait()
    assert said(second)["type"] == "held"
    assert second.stdin
    second.stdin.close()
    assert second.wait(30) == 0
    assert (root / "push.lock").read_text() == "", "nobody's name stays"


def test_verify_reads_every_release_and_says_what_is_wrong_in_each(root: Path, three: list[str]) -> None:
    damaged = root / "releases" / three[0] / "shared"
    damaged.chmod(0o644)
    damaged.write_bytes(b"S" * 1000)
    (root / "releases" / three[1] / "own").unlink()
    found = {entry["release"]: entry["damaged"] for entry in ask(root, "verify")["result"]["releases"]}
    # The releases' shared file is a single file on the disk.
    assert found == {three[0]: ["shared"], three[1]: ["own", "shared"], three[2]: ["shared"]}


def test_a_damaged_manifest_damages_its_release(root: Path, three: list[str]) -> None:
    manifest = root / "releases" / three[2] / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    assert ask(root, "prune", keep=5)["error"]["message"] == "a release's manifest is damaged"
    answer = ask(root, "verify", repair=True)["result"]
    assert (answer["active"], answer["repaired"]) == (three[1], True)
    assert pointer(root)["release"] == three[1]
    assert ask(root, "prune", keep=5)["result"]["removed"] == []


def test_prune_removes_what_killed_agents_left_and_what_never_became_a_release(root: Path, three: list[str]) -> None:
    old, new = root / "incoming" / ("a" * 64 + ".part"), root / "incoming" / ("b" * 64 + ".part")
    for part in (old, new):
        part.write_bytes(b"x" * 10)
    long_ago = time.time() - 2 * DAY_S
    os.utime(old, (long_ago, long_ago))
    unused = root / "runtimes" / "fedcba9876543210"
    unused.mkdir()
    os.utime(unused, (long_ago, long_ago))
    os.utime(root / "runtimes" / LOCK, (long_ago, long_ago))
    half = root / "releases" / ".new-0123"
    half.mkdir()
    (root / "current.json.123.tmp").write_text("{")
    ask(root, "prune", keep=2)
    assert not any(path.exists() for path in (old, unused, half, root / "current.json.123.tmp"))
    assert new.exists() and (root / "runtimes" / LOCK).exists()


def test_one_release_alone_is_hashed(root: Path, three: list[str]) -> None:
    (root / "releases" / three[0] / "own").chmod(0o644)
    (root / "releases" / three[0] / "own").write_bytes(b"x")
    assert ask(root, "verify", release=three[1])["result"]["releases"] == [
        {"release": three[1], "damaged": [], "blobs": []}
    ]
    assert ask(root, "verify", release=three[0])["result"]["releases"][0]["damaged"] == ["own"]
    assert ask(root, "verify", release="f" * 64)["error"]["code"] == "no_release"


def test_a_damaged_manifest_is_said_to_be_and_goes(root: Path, three: list[str]) -> None:
    manifest = root / "releases" / three[0] / "manifest.json"
    manifest.write_text(manifest.read_text().replace("own", "owl"))
    error = ask(root, "releases")["error"]
    assert (error["code"], error["message"]) == ("corrupt", f"the manifest of release {three[0][:12]} is damaged")
    ask(root, "verify", repair=True)
    assert {entry["release"] for entry in ask(root, "releases")["result"]["releases"]} == set(three[1:])


def test_what_is_sent_afresh_is_given_to_every_release_that_had_it(root: Path, three: list[str]) -> None:
    path = root / "releases" / three[0] / "shared"
    path.chmod(0o644)
    path.write_bytes(b"x" * (5 << 20))
    files = {"shared": b"s" * (5 << 20), "own": b"3" * 100}
    text, fourth = deliver(root, files)
    request = {"release": fourth, "manifest": text}
    assert ask(root, "install", **request)["error"]["code"] == "corrupt"
    deliver(root, files)
    assert ask(root, "install", **request)["result"]["installed"]
    answer = ask(root, "verify")["result"]
    assert {entry["release"]: entry["damaged"] for entry in answer["releases"]} == {r: [] for r in [*three, fourth]}


@pytest.mark.parametrize("keep", [0, 1])
def test_prune_killed_at_any_point_leaves_everything_that_is_named(root: Path, three: list[str], keep: int) -> None:
    """The real agent is ended before each system call that changes the disk."""
    script = (
        "import os, runpy, sys\n"
        "left = int(sys.argv[1])\n"
        "def ending(call):\n"
        "    def wrapped(*args, **kwargs):\n"
        "        global left\n"
        "        left -= 1\n"
        "        if left < 0: os._exit(9)\n"
        "        return call(*args, **kwargs)\n"
        "    return wrapped\n"
        "for name in ('unlink', 'rename', 'replace', 'rmdir'): setattr(os, name, ending(getattr(os, name)))\n"
        f"sys.argv = [{str(root / 'agent' / 'agent.pyz')!r}]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    request = json.dumps({"protocol": 1, "op": "prune", "keep": keep}) + "\n"
    for calls in range(60):
        done = subprocess.run([sys.executable, "-c", script, str(calls)], input=request, capture_output=True, text=True)
        assert pointer(root)["release"] == three[2]
        answer = ask(root, "verify")["result"]
        assert [entry["damaged"] for entry in answer["releases"]] == [[]] * len(answer["releases"])
        installed = {entry["release"] for entry in answer["releases"]}
        assert three[2] in installed
        previous = pointer(root)["previous"]
        assert isinstance(previous, list) and {entry["release"] for entry in previous} <= installed
        if done.returncode == 0:
            break
        assert done.returncode == 9, done.stderr
    else:
        pytest.fail("it never ended")
    assert calls > 2, "nothing was interrupted"
    assert len(installed) == keep + 1
    assert len(list((root / "blobs" / "sha256").iterdir())) == keep + 2
