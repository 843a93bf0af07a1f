"""Tables in Markdown."""

from __future__ import annotations

from toolkit.cli import markdown


def test_markdown_escapes_what_would_break_a_row() -> None:
    assert markdown.table(["a\nb"], [["x|y"]]) == "| a b |\n|---|\n| x\\|y |"


def test_others_words_are_plain_text_in_markdown() -> None:
    cell = markdown.text("![x](http://a) <b> `c` a_b | \x1b")
    assert cell == r"!\[x](http://a) \<b> \`c\` a_b | \\x1b"
