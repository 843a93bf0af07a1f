"""The agent's copying of parts from present files into missing ones, and its handling of wrong lists."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.requests import ask, deliver, fake_runtime, install_parts, listed, sha256

MIB = 2**20
A, B, C, D = (hashlib.shake_256(b"%d" % length).digest(length) for length in (2 * MIB, 700, MIB, 5))


def reuse(root: Path, *parts: bytes) -> tuple[int, Path]:
    """Ask for a file of these parts; returns the copied bytes and the path at which it arrives."""
    whole = b"".join(parts)
    file = {"sha256": sha256(whole), "size_bytes": len(whole), "blocks": listed(*parts)}
    answer = ask(root, "reuse", files=[file])
    return answer["result"]["reused_bytes"], root / "incoming" / f"{sha256(whole)}.part"


def blob(root: Path, name: str) -> Path:
    path = root / "blobs" / "sha256" / name
    path.chmod(0o644)
    return path


def test_parts_are_found_wherever_they_lie(root: Path) -> None:
    install_parts(root, B, A, D)
    install_parts(root, C, D)
    copied, part = reuse(root, D, C, b"new" * 100, A, B, b"end")
    assert copied == len(D + C + A + B)
    content = part.read_bytes()
    assert content == D + C + bytes(300) + A + B
    assert list((root / "incoming").iterdir()) == [part]


def test_less_than_a_chunk_is_not_worth_it(root: Path) -> None:
    install_parts(root, A, B, D)
    copied, part = reuse(root, B, D, b"new")
    assert copied == 0 and not part.exists() and not list((root / "incoming").iterdir())


def test_without_lists_nothing_is_looked_for(root: Path) -> None:
    text, release = deliver(root, {"weights": A})
    ask(root, "install", release=release, manifest=text)
    assert not (root / "blocks").exists()
    assert reuse(root, A, B)[0] == 0


def test_what_has_begun_to_arrive_stays_and_what_was_cut_off_begins_afresh(root: Path) -> None:
    install_parts(root, A)
    (root / "incoming" / f"{sha256(A + B)}.reuse").write_bytes(b"of an agent that was killed")
    copied, part = reuse(root, A, B)
    assert copied == len(A) and part.read_bytes() == A
    part.write_bytes(b"?")
    assert reuse(root, A, B) == (0, part)
    assert part.read_bytes() == b"?"


def test_bits_that_rotted_are_not_counted(root: Path) -> None:
    name = install_parts(root, A, C)
    content = bytearray(A + C)
    content[7] ^= 1
    blob(root, name).write_bytes(content)
    copied, part = reuse(root, D, C, A)
    assert copied == len(C)
    assert part.read_bytes()[len(D) : len(D + C)] == C


def test_a_file_that_lost_its_end_is_not_read(root: Path) -> None:
    name = install_parts(root, A, C)
    os.truncate(blob(root, name), len(A))
    assert reuse(root, D, A, C)[0] == 0


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[[5]]", '[["5", "x"]]', "[[-1, 2], [3, 4]]", "NAMES OTHERS"],
)
def test_a_list_that_is_damaged_or_lies_leads_to_nothing(root: Path, text: str) -> None:
    name = install_parts(root, A, C)
    kept = root / "blocks" / f"{name}.json"
    # The list names other parts than the file has: the agent checks the hash of each part that it copies.
    kept.write_text(json.dumps([[len(A), sha256(C)], [len(C), sha256(A)]]) if text == "NAMES OTHERS" else text)
    assert reuse(root, A, C, D)[0] == 0
    kept.rename(kept.with_name("..%2f..%2fetc.json"))
    assert reuse(root, A, C, D)[0] == 0


WRONG: list[Any] = [
    [[5, "0" * 64]],
    [[0, "0" * 64], [2 * MIB, "0" * 64]],
    [[2 * MIB, "../x"]],
    [[True, "0" * 64]],
    [["2", "0" * 64]],
    5,
]


@pytest.mark.parametrize("blocks", WRONG)
def test_parts_that_cannot_be_a_files_are_refused(root: Path, blocks: Any) -> None:
    text, release = deliver(root, {"weights": A})
    error = ask(root, "install", release=release, manifest=text, blocks={sha256(A): blocks})["error"]
    assert error["code"] == "bad_request"
    assert not (root / "releases" / release).exists()
    error = ask(root, "reuse", files=[{"sha256": "0" * 64, "size_bytes": len(A), "blocks": blocks}])["error"]
    assert error["code"] == "bad_request"


def test_a_name_that_is_no_hash_is_refused(root: Path) -> None:
    file = {"sha256": "../../current", "size_bytes": 5, "blocks": listed(D)}
    assert ask(root, "reuse", files=[file])["error"]["code"] == "bad_request"


def test_lists_of_files_that_are_not_in_the_manifest_are_not_kept(root: Path) -> None:
    text, release = deliver(root, {"weights": A})
    ask(root, "install", release=release, manifest=text, blocks={sha256(A): listed(A), "../../x": listed(B)})
    assert [path.name for path in (root / "blocks").iterdir()] == [f"{sha256(A)}.json"]


def test_nothing_is_copied_when_the_disk_has_no_room_for_all(root: Path) -> None:
    install_parts(root, A)
    count = shutil.disk_usage(root).free // (16 * MIB) + 100
    blocks = [[len(A), sha256(A)], *([16 * MIB, "0" * 64] for _ in range(count))]
    file = {"sha256": "0" * 64, "size_bytes": len(A) + count * 16 * MIB, "blocks": blocks}
    assert ask(root, "reuse", files=[file])["result"] == {"reused_bytes": 0}


def test_lists_go_with_their_files(root: Path) -> None:
    fake_runtime(root)
    kept = install_parts(root, A)
    install_parts(root, C)
    release = ask(root, "releases")["result"]["releases"]
    active = next(entry["release"] for entry in release if entry["manifest"]["artifacts"][0]["sha256"] == kept)
    ask(root, "activate", release=active, runtime="0123456789abcdef")
    ask(root, "prune", keep=0)
    assert [path.name for path in (root / "blocks").iterdir()] == [f"{kept}.json"]
