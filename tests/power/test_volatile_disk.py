"""The possible contents of a recorded disk after a power cut."""

from __future__ import annotations

import random

from tests.power.volatile_disk import SECTOR, Flush, Recording, Write


def sectors(letters: str) -> bytes:
    return b"".join(letter.encode() * SECTOR for letter in letters)


def letters(disk: bytearray) -> str:
    return disk[::SECTOR].decode()


def test_what_was_flushed_stays() -> None:
    recording = Recording(sectors("...."), [Write(0, sectors("ab")), Flush()])
    assert {letters(recording.cut(2, random.Random(seed))) for seed in range(50)} == {"ab.."}


def test_what_came_after_the_cut_is_not_there() -> None:
    recording = Recording(sectors("...."), [Write(0, sectors("a")), Flush(), Write(SECTOR, sectors("b")), Flush()])
    assert {letters(recording.cut(2, random.Random(seed))) for seed in range(50)} == {"a..."}


def test_writes_without_a_flush_are_lost_torn_and_out_of_order() -> None:
    recording = Recording(sectors("...."), [Write(0, sectors("ab")), Write(2 * SECTOR, sectors("cd"))])
    found = {letters(recording.cut(2, random.Random(seed))) for seed in range(300)}
    assert found == {a + b + c + d for a in "a." for b in "b." for c in "c." for d in "d."}


def test_of_two_writes_to_a_sector_the_older_may_be_what_stays() -> None:
    recording = Recording(sectors("."), [Write(0, sectors("a")), Write(0, sectors("b"))])
    assert {letters(recording.cut(2, random.Random(seed))) for seed in range(300)} == {".", "a", "b"}


def test_a_phase_says_what_the_log_grew_by() -> None:
    recording = Recording(sectors("."), [Flush()])
    with recording.phase("activate"):
        recording.log.append(Flush())
    (phase,) = recording.phases
    assert (phase.name, phase.start, phase.end) == ("activate", 1, 2)
