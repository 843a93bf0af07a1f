"""maintenance.docs: the generated sections and their places."""

from __future__ import annotations

from pathlib import Path

from maintenance.docs import SECTIONS, fill_sections, first_paragraph, generated, layer_section, module_file
from tests.support.paths import REPO


def test_only_what_stands_between_markers_is_replaced(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(SECTIONS, "layers", lambda: "new")
    text = "before\n<!-- begin: layers -->\nold\nold\n<!-- end: layers -->\nafter\n"
    filled = "before\n<!-- begin: layers -->\nnew\n<!-- end: layers -->\nafter\n"
    assert fill_sections(text) == filled
    assert fill_sections(filled) == filled


def test_text_without_markers_stays() -> None:
    assert fill_sections("before\nafter\n") == "before\nafter\n"


def test_paragraph_ends_at_an_empty_line(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""One thing,\nsaid on two lines.\n\nMore of it.\n"""\nraise SystemExit("imported")\n')
    assert first_paragraph(path) == "One thing, said on two lines."
    path.write_text("x = 1\n")
    assert first_paragraph(path) == ""


def test_layers_are_numbered_from_the_ground_and_say_what_they_are_for() -> None:
    rows = [line.strip("|").split(" | ") for line in layer_section().splitlines()[2:]]
    assert [row[0].strip() for row in rows] == sorted((row[0].strip() for row in rows), key=int, reverse=True)
    assert rows[0][1] == "`cli`"
    assert (rows[-1][0].strip(), rows[-1][1]) == ("1", "`errors`")
    assert all(len(purpose.split()) > 5 for _, _, purpose in rows)


def test_packages_and_modules_are_found() -> None:
    assert module_file("toolkit.device") == REPO / "toolkit" / "device" / "__init__.py"
    assert module_file("toolkit.errors") == REPO / "toolkit" / "errors.py"


def test_every_section_has_a_document() -> None:
    texts = [text for path, text in generated().items() if path.suffix == ".md"]
    assert all(any(f"<!-- begin: {name} -->" in text for text in texts) for name in SECTIONS)
