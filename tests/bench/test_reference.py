"""The reference that a bundle is compared with, and the text for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, follow, seed_cache
from toolkit.bench import EvalText, find_reference, read_eval_text
from toolkit.bench.reference import Reference, check_comparable, reference_files
from toolkit.config import cache_dir
from toolkit.device import connect
from toolkit.errors import ConfigError
from toolkit.events import Event, Step


def compute(sample: EvalText, events: list[Event] | None = None) -> Reference:
    with connect("local") as device:
        return follow(reference_files(build("fp32"), sample, device), events)


def test_windows_prompts_and_files(local: Path) -> None:
    found = compute(read_eval_text(tokens=300, window_tokens=100, prompts=3))
    assert [len(window) for window in found.windows] == [100, 100, 100]
    assert [len(entry["prompt"]) for entry in found.continuations] == [32, 32, 32]
    assert [len(entry["tokens"]) for entry in found.continuations] == [64, 64, 64]
    vocabulary = 3072
    for file in found.files:
        # Two bytes for each word of the vocabulary at each predicted token, and a little more.
        assert 99 * vocabulary * 2 < file.size_bytes == file.source.stat().st_size < 99 * vocabulary * 2 + 4000


def test_it_is_kept_and_what_was_cut_off_goes_on(local: Path) -> None:
    sample = read_eval_text(tokens=200, window_tokens=100, prompts=1)
    first = compute(sample)
    (folder,) = (cache_dir() / "reference").iterdir()
    events: list[Event] = []
    assert compute(sample, events) == first
    assert [event.skipped for event in events if isinstance(event, Step)] == [True]
    # As after a kill before the second window and the index were written.
    (folder / "index.json").unlink()
    first.files[1].source.unlink()
    before = first.files[0].source.stat().st_mtime_ns
    assert compute(sample) == first
    assert first.files[0].source.stat().st_mtime_ns == before


def test_damage_in_the_cache_is_computed_again(local: Path) -> None:
    sample = read_eval_text(tokens=100, window_tokens=100, prompts=0)
    first = compute(sample)
    (folder,) = (cache_dir() / "reference").iterdir()
    (folder / "index.json").write_text("{")
    assert compute(sample) == first


def test_a_text_shorter_than_a_window_is_refused(local: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("In the beginning.")
    with pytest.raises(ConfigError) as error:
        compute(read_eval_text(path))
    assert error.value.message == "short.txt: its 4 tokens are less than one window of 512"
    assert error.value.hint == "take a longer text"
    path.write_text("In the beginning. " * 20)
    with pytest.raises(ConfigError) as error:
        compute(read_eval_text(path))
    assert re.fullmatch(r"take a longer text, or --window \d\d or less", error.value.hint or "")


def test_an_empty_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(" \n\n")
    with pytest.raises(ConfigError, match=r"empty\.txt: the text is empty"):
        read_eval_text(path)


def test_a_text_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match=r"image\.png: cannot be read as UTF-8 text"):
        read_eval_text(path)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (
            b"In the\nbegin\0ning",
            ": no model can read this text: line 2, column 6 is a NUL character, and a model would ",
        ),
        ("In the".encode("utf-16-le"), ": no model can read this text: line 1, column 2 is a NUL character"),
    ],
)
def test_a_text_that_a_model_would_read_in_part_is_refused(raw: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=re.escape(f"mine.txt{words}")):
        read_eval_text(path)


def test_fewer_tokens_than_a_window_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        read_eval_text(tokens=100, window_tokens=512)
    assert error.value.message == "100 tokens are less than one window of 512"
    assert error.value.hint == "give --window 100 or less, or more --tokens"


def test_a_window_beyond_the_planned_context_is_refused() -> None:
    manifest = build("fp32").manifest
    with pytest.raises(ConfigError) as error:
        check_comparable(manifest, manifest, read_eval_text(window_tokens=1024))
    assert error.value.message == "windows of 1024 tokens don't fit the planned context of 1024"
    assert "--window 1023" in (error.value.hint or "")


def test_a_reference_of_another_model_is_refused() -> None:
    manifest = build("fp32").manifest
    other = manifest.model_copy(
        update={
            "name": "other-fp32",
            "model": manifest.model.model_copy(update={"id": "other", "weights_sha256": "0" * 64}),
        }
    )
    with pytest.raises(
        ConfigError, match="other-fp32 is of another model than phi3-nano-fp32: other \\(000000000000\\)"
    ):
        check_comparable(manifest, other, read_eval_text())


def test_the_reference_is_the_fp32_bundle_of_the_same_weights(tmp_path: Path) -> None:
    int4 = build("int4-rtn-b32")
    with pytest.raises(ConfigError) as error:
        find_reference(int4.manifest)
    assert error.value.message == "no fp32 bundle of phi3-nano is built here to compare phi3-nano-int4-rtn-b32 with"
    seed_cache(tmp_path / "cache", "fp32")
    assert find_reference(int4.manifest).id == build("fp32").id
