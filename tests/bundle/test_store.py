"""toolkit.bundle.store: what a manifest promises, and every way a bundle can break the promise."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support import builds, hostile
from tests.support.builds import follow
from tests.support.bundles import FILES, make
from tests.support.figures import figures
from toolkit.bundle import Bundle, canonical_json, find_bundle, list_bundles, open_bundle, verify_bundle
from toolkit.bundle.store import find_identity, link_files, record_quality, store_dir, write_bundle
from toolkit.errors import ConfigError, CorruptBundle
from toolkit.metrics import HELD_OUT, Quality
from toolkit.untrusted import MANIFEST_NAME


def put_in_store(**fields: Any) -> Bundle:
    beside = store_dir() / ".beside"
    made = make(beside, **fields)
    beside.rename(store_dir() / made.id)
    return open_bundle(store_dir() / made.id)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make(tmp_path / "bundle")


def complaint(bundle: Bundle) -> str:
    with pytest.raises(CorruptBundle) as caught:
        follow(verify_bundle(bundle))
    return caught.value.message


def rewrite(bundle: Bundle, **keys: object) -> None:
    path = bundle.path / MANIFEST_NAME
    value = json.loads(path.read_text()) | keys
    path.chmod(0o644)
    path.write_text(json.dumps(value))


def test_id_is_the_hash_of_the_manifest_file(bundle: Bundle) -> None:
    raw = (bundle.path / MANIFEST_NAME).read_bytes()
    assert bundle.id == hashlib.sha256(raw).hexdigest()
    assert bundle.manifest_text.encode() == raw
    assert open_bundle(bundle.path) == bundle


def test_same_content_gives_the_same_id_anywhere(bundle: Bundle, tmp_path: Path) -> None:
    assert make(tmp_path / "elsewhere").id == bundle.id


def test_files_are_read_only(bundle: Bundle) -> None:
    for path in bundle.path.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o777 == 0o444


def test_whole_bundle_verifies_with_progress(bundle: Bundle) -> None:
    events: list[Any] = []
    follow(verify_bundle(bundle), events)
    assert events[-1].done == events[-1].total == sum(map(len, FILES.values()))


def test_every_fault_is_listed(bundle: Bundle) -> None:
    (bundle.path / "model.onnx").unlink()
    data = bundle.path / "model.onnx.data"
    data.chmod(0o644)
    data.write_bytes(b"\0" * 4999 + b"\1")
    (bundle.path / "sub/tokenizer.json").chmod(0o644)
    (bundle.path / "sub/tokenizer.json").write_bytes(b"{}\n")
    (bundle.path / "stowaway.py").write_text("print()")
    said = complaint(bundle)
    assert "model.onnx: missing" in said
    assert "model.onnx.data: content changed" in said
    assert "sub/tokenizer.json: 3 bytes instead of 2" in said
    assert "stowaway.py: not in the manifest" in said


def test_link_instead_of_a_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "graph"
    (bundle.path / "model.onnx").rename(target)
    (bundle.path / "model.onnx").symlink_to(target)
    assert "model.onnx: a symbolic link" in complaint(bundle)


def test_linked_folder_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "sub").rename(tmp_path / "sub")
    (bundle.path / "sub").symlink_to(tmp_path / "sub")
    assert "sub/tokenizer.json: a symbolic link" in complaint(bundle)


@pytest.mark.parametrize("path", hostile.PATHS)
def test_hostile_path_is_refused(bundle: Bundle, path: str) -> None:
    rewrite(bundle, artifacts=[hostile.artifact(path)])
    with pytest.raises(CorruptBundle, match="unsafe path"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("path", hostile.CONTROL_PATHS)
def test_path_that_a_terminal_or_the_system_would_obey_is_refused(bundle: Bundle, path: str) -> None:
    rewrite(bundle, artifacts=[hostile.artifact(path)])
    with pytest.raises(CorruptBundle, match="control characters"):
        open_bundle(bundle.path)


@pytest.mark.parametrize(("paths", "why"), hostile.CLASHES)
def test_paths_that_exclude_each_other_are_refused(bundle: Bundle, paths: list[str], why: str) -> None:
    rewrite(bundle, artifacts=[hostile.artifact(path) for path in paths])
    with pytest.raises(CorruptBundle, match=why):
        open_bundle(bundle.path)


@pytest.mark.parametrize("size", hostile.SIZES)
def test_absurd_size_is_refused(bundle: Bundle, size: object) -> None:
    rewrite(bundle, artifacts=[hostile.artifact(size_bytes=size)])
    with pytest.raises(CorruptBundle, match=r"size_bytes|no number"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("sha256", hostile.HASHES)
def test_hash_that_is_none_is_refused(bundle: Bundle, sha256: object) -> None:
    rewrite(bundle, artifacts=[hostile.artifact(sha256=sha256)])
    with pytest.raises(CorruptBundle, match=r"sha256|control characters"):
        open_bundle(bundle.path)


def test_too_many_artifacts_are_refused(bundle: Bundle) -> None:
    rewrite(bundle, artifacts=hostile.too_many())
    with pytest.raises(CorruptBundle, match="at most 10000"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("kind", hostile.TEXTS)
def test_text_that_is_no_manifest_is_refused(bundle: Bundle, kind: str) -> None:
    raw, why = hostile.TEXTS[kind]
    path = bundle.path / MANIFEST_NAME
    path.chmod(0o644)
    path.write_bytes(raw)
    with pytest.raises(CorruptBundle, match=why):
        open_bundle(bundle.path)


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "\x1b[2Jcleared"},
        {"provider": "cpu\n"},
        {"tools": {"olive\x00": "1"}},
        {"recipe": {"name": "a", "note": "\x9b31m"}},
        {"context_tokens": 10**30},
        {"context_tokens": 512.0},
        {"model": {"id": "a", "revision": None, "architecture": "b", "weights_sha256": "0" * 64, "parameters": -1}},
    ],
)
def test_other_fields_are_distrusted_too(bundle: Bundle, keys: dict[str, object]) -> None:
    rewrite(bundle, **keys)
    with pytest.raises(CorruptBundle):
        open_bundle(bundle.path)


def test_a_link_instead_of_the_manifest_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / MANIFEST_NAME).rename(tmp_path / "manifest")
    (bundle.path / MANIFEST_NAME).symlink_to(tmp_path / "manifest")
    with pytest.raises(CorruptBundle, match="a symbolic link"):
        open_bundle(bundle.path)


def test_links_and_pipes_beside_the_artifacts_are_refused(bundle: Bundle) -> None:
    (bundle.path / "secrets").symlink_to("/etc")
    (bundle.path / "loop").symlink_to(".")
    os.mkfifo(bundle.path / "pipe")
    (bundle.path / "signatures").mkdir()
    (bundle.path / "signatures" / "linked.sig").symlink_to("/etc/passwd")
    (bundle.path / "signatures" / "run.sh").touch()
    said = complaint(bundle)
    for name in ("secrets", "loop", "pipe", "signatures/linked.sig", "signatures/run.sh"):
        assert f"{name}: not in the manifest" in said


def test_a_pipe_instead_of_a_file_is_not_waited_for(bundle: Bundle) -> None:
    (bundle.path / "model.onnx").unlink()
    os.mkfifo(bundle.path / "model.onnx")
    assert "model.onnx: missing" in complaint(bundle)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"manifest_version": 2}, "newer than this edgephi reads"),
        ({"manifest_version": "one"}, "manifest_version"),
        ({"context_tokens": 0}, "context_tokens"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_malformed_manifest_is_explained(bundle: Bundle, keys: dict[str, object], message: str) -> None:
    rewrite(bundle, **keys)
    with pytest.raises(CorruptBundle, match=message):
        open_bundle(bundle.path)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        open_bundle(tmp_path / "absent")
    with pytest.raises(ConfigError, match="not a bundle"):
        open_bundle(tmp_path)


def test_found_by_name_id_and_folder() -> None:
    made = put_in_store()
    assert find_bundle("nano-int4") == find_bundle(made.id[:6]) == find_bundle(made.id) == made
    assert find_bundle(str(made.path)) == made


def test_a_folder_has_a_separator() -> None:
    make(Path("nano-int4"))
    with pytest.raises(ConfigError) as caught:
        find_bundle("nano-int4")
    assert caught.value.message == "unknown bundle 'nano-int4'"
    assert caught.value.hint == "edgephi bundle list shows what is built; the folder of that name is ./nano-int4"
    assert find_bundle("./nano-int4").path == Path("nano-int4")


def test_a_stored_bundle_and_a_folder_of_one_name() -> None:
    made = put_in_store(context_tokens=1024)
    Path("nano-int4").mkdir()
    assert find_bundle("nano-int4") == made
    make(Path("nano-int4"))
    for word in ("nano-int4", made.id[:12]):
        if word != "nano-int4":
            make(Path(word))
        with pytest.raises(ConfigError) as caught:
            find_bundle(word)
        assert caught.value.message == f"'{word}' is a stored bundle, and a folder here is a bundle too"
        assert caught.value.hint == f"write ./{word} for the folder, {made.id[:12]} for the stored bundle"
    assert find_bundle("./nano-int4").id != find_bundle(made.id).id == made.id


def test_short_prefix_and_unknown_name() -> None:
    made = put_in_store()
    with pytest.raises(ConfigError, match="unknown bundle"):
        find_bundle(made.id[:5])
    with pytest.raises(ConfigError, match=r"unknown bundle 'nano-int8' \(did you mean 'nano-int4'\?\)"):
        find_bundle("nano-int8")


def test_name_of_two_bundles_asks_for_an_id() -> None:
    first, second = put_in_store(), put_in_store(context_tokens=1024)
    with pytest.raises(ConfigError) as caught:
        find_bundle("nano-int4")
    assert first.id[:12] in caught.value.message and second.id[:12] in caught.value.message


def test_list_leaves_out_what_is_unfinished_or_broken() -> None:
    made = put_in_store()
    make(store_dir() / ".half-made")
    (store_dir() / ("f" * 64)).mkdir()
    make(store_dir() / ("e" * 64))
    assert list_bundles() == [made]


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'
    with pytest.raises(ValueError):
        canonical_json(float("nan"))


def test_links_share_bytes(bundle: Bundle, tmp_path: Path) -> None:
    link_files(bundle.path, list(FILES), tmp_path / "copy")
    for name in FILES:
        assert (tmp_path / "copy" / name).samefile(bundle.path / name)


def test_files_are_copied_where_links_cannot_be(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    link_files(bundle.path, list(FILES), tmp_path / "copy")
    assert (tmp_path / "copy/model.onnx").read_bytes() == b"graph"


def test_real_bundle_verifies_and_tells_nothing_of_this_machine() -> None:
    real = builds.bundle("int4-rtn-b32")
    follow(verify_bundle(real))
    for artifact in real.manifest.artifacts:
        if artifact.path.endswith(".json"):
            text = (real.path / artifact.path).read_text(encoding="utf-8")
            assert str(builds.session_cache("int4-rtn-b32")) not in text
            assert str(Path.home()) not in text
    assert str(builds.session_cache("int4-rtn-b32")) not in real.manifest_text


def put_twin(quality: dict[str, Quality]) -> Bundle:
    """Put the bundle of `put_in_store`, with figures, beside it, as a process leaves it that is killed in between."""
    beside = store_dir() / ".twin"
    made = make(beside)
    (beside / MANIFEST_NAME).unlink()
    twin = write_bundle(beside, made.manifest.model_copy(update={"quality": quality}))
    beside.rename(store_dir() / twin.id)
    return open_bundle(store_dir() / twin.id)


def test_identity_knows_nothing_of_figures(bundle: Bundle) -> None:
    evaluated = bundle.manifest.model_copy(update={"quality": {HELD_OUT: figures()}})
    assert evaluated.identity == bundle.manifest.identity
    other = bundle.manifest.model_copy(update={"context_tokens": 513})
    assert other.identity != bundle.manifest.identity


def test_recorded_figures_make_a_new_id_of_the_same_files() -> None:
    old = put_in_store()
    inode = (old.path / "model.onnx.data").stat().st_ino
    new = record_quality(old, HELD_OUT, figures())
    assert new.id != old.id and not old.path.exists()
    assert new.path == store_dir() / new.id
    assert (new.path / "model.onnx.data").stat().st_ino == inode
    assert list_bundles() == [new]
    follow(verify_bundle(new))
    again = record_quality(new, "own.txt", figures(ppl=30))
    assert set(again.manifest.quality) == {HELD_OUT, "own.txt"}
    assert record_quality(again, HELD_OUT, figures()).id == again.id
    assert list(store_dir().glob(".*")) == []


def test_a_bundle_outside_the_store_keeps_its_figures_where_it_is(bundle: Bundle) -> None:
    stored = put_in_store()
    new = record_quality(bundle, HELD_OUT, figures())
    assert new.path == bundle.path and open_bundle(bundle.path) == new
    follow(verify_bundle(new))
    # The same bundle in the store has the figures too.
    assert [entry.id for entry in list_bundles()] == [new.id] != [stored.id]


def test_figures_that_cannot_be_written_leave_the_bundle_alone(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ConfigError, match="the figures can't be recorded: Read-only file system") as caught:
        record_quality(bundle, HELD_OUT, figures())
    assert caught.value.hint == "--no-record leaves the bundle as it is"
    assert open_bundle(bundle.path) == bundle


def test_of_two_with_one_identity_the_one_with_figures_is_meant() -> None:
    old = put_in_store()
    twin = put_twin({HELD_OUT: figures()})
    assert find_bundle("nano-int4") == find_identity(old.manifest.identity) == twin
    merged = record_quality(old, "own.txt", figures())
    assert set(merged.manifest.quality) == {HELD_OUT, "own.txt"}
    assert list_bundles() == [merged]


def test_a_manifest_with_broken_figures_is_explained(bundle: Bundle) -> None:
    rewrite(bundle, quality={HELD_OUT: {"ppl": "good"}})
    with pytest.raises(CorruptBundle, match=r"quality\.held-out"):
        open_bundle(bundle.path)
