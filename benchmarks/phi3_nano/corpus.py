"""Turn the source texts into passages, and hold some of them out.

Sources (see README.md): the six novels of Jane Austen as exported by ``export_austen.R`` and the King James
Bible as printed by Debian's ``bible`` command. Both are in the public domain.

``python corpus.py RAW OUT`` reads ``RAW/<novel>.txt`` and ``RAW/kjv.txt`` and writes ``OUT/train.jsonl`` (one
chapter a line: ``{"source": ..., "chapter": ..., "text": ...}``) and ``OUT/heldout.txt``. A paragraph is one
line; in the held-out file an empty line stands between chapters.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

NOVELS = ("sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey", "persuasion")

# Whole chapters, of kinds seen in training. The gospels are no use here: they repeat one another.
HELD_OUT_NOVEL_TAILS = {"prideprejudice": 4, "emma": 2}
HELD_OUT_BOOKS = {"Ruth": range(1, 5), "Ge": range(42, 51), "Acts": range(21, 29)}

_HEADING = re.compile(r"^(?:CHAPTER|Chapter) (?:[IVXL]+|\d+)\.?\s*$", re.MULTILINE)
_VOLUME = re.compile(r"^VOLUME [IVX]+\s*$", re.MULTILINE)
_BACK_MATTER = re.compile(r"^(?:THE END|FINIS|Finis|\*Vide a letter.*|A NOTE ON THE TEXT)\s*$", re.MULTILINE)
_EDITOR_NOTE = re.compile(r"\[(?:At this point in the first|End volume one)[^\]]*\]?")
_VERSE = re.compile(r"^(?P<book>\d?[A-Za-z]+)(?P<chapter>\d+):(?P<verse>\d+) (?P<text>.*)$")


@dataclass(frozen=True)
class Chapter:
    """One chapter of plain prose; paragraphs are separated by a single newline."""

    source: str
    chapter: str
    text: str


def unwrap(text: str) -> str:
    """Join the hard-wrapped lines of each paragraph; drop emphasis marks and doubled spaces."""
    paragraphs = re.split(r"\n\s*\n", _EDITOR_NOTE.sub("", text).replace("_", "").replace("--", " -- "))
    joined = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return "\n".join(paragraph for paragraph in joined if paragraph)


def novel_chapters(name: str, text: str) -> Iterator[Chapter]:
    """Chapters of one novel, without title page, headings and back matter."""
    bodies = _HEADING.split(_VOLUME.sub("", text))[1:]
    for number, body in enumerate(bodies, start=1):
        ending = _BACK_MATTER.search(body)
        yield Chapter(name, str(number), unwrap(body[: ending.start()] if ending else body))


def bible_chapters(text: str) -> Iterator[Chapter]:
    """Chapters of ``bible -f`` output (one verse a line: ``Ge1:1 In the ...``), verse numbers dropped."""
    chapters: dict[tuple[str, str], list[str]] = {}
    for line in text.splitlines():
        verse = _VERSE.match(line.strip())
        if verse:
            chapters.setdefault((verse["book"], verse["chapter"]), []).append(" ".join(verse["text"].split()))
    for (book, number), verses in chapters.items():
        yield Chapter(book, number, " ".join(verses))


def split_held_out(chapters: list[Chapter]) -> tuple[list[Chapter], list[Chapter]]:
    """(training, held out). Every chapter lands in exactly one of the two."""
    lengths = {name: sum(chapter.source == name for chapter in chapters) for name in NOVELS}
    train: list[Chapter] = []
    held_out: list[Chapter] = []
    for chapter in chapters:
        number = int(chapter.chapter)
        tail = HELD_OUT_NOVEL_TAILS.get(chapter.source, 0)
        in_tail = tail > 0 and number > lengths[chapter.source] - tail
        unseen = in_tail or number in HELD_OUT_BOOKS.get(chapter.source, ())
        (held_out if unseen else train).append(chapter)
    return train, held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="folder with <novel>.txt and kjv.txt")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    chapters = [
        chapter for name in NOVELS for chapter in novel_chapters(name, (args.raw / f"{name}.txt").read_text("utf-8"))
    ]
    chapters += bible_chapters((args.raw / "kjv.txt").read_text("utf-8"))
    train, held_out = split_held_out(chapters)
    with (args.out / "train.jsonl").open("w", encoding="utf-8") as lines:
        for chapter in train:
            lines.write(json.dumps(asdict(chapter), ensure_ascii=False) + "\n")
    (args.out / "heldout.txt").write_text("\n\n".join(chapter.text for chapter in held_out) + "\n", "utf-8")
    for name, part in (("train", train), ("heldout", held_out)):
        print(f"{name}: {len(part)} chapters, {sum(len(chapter.text) for chapter in part)} characters")


if __name__ == "__main__":
    main()
