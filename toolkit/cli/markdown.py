"""Tables in Markdown, of others' words too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from toolkit.untrusted import visible

# Characters that begin code, links, images and HTML.
_MARKDOWN = re.compile(r"[\\`\[<]")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as GitHub-flavoured Markdown; cells are Markdown: others' words pass `text`."""
    lines = [
        "| " + " | ".join(column.replace("\n", " ") for column in columns) + " |",
        "|" + "|".join("---" for _ in columns) + "|",
    ]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def text(words: str) -> str:
    """The text as one line of Markdown that shows it as it is, without a link, an image or HTML."""
    return _MARKDOWN.sub(r"\\\g<0>", visible(words))
