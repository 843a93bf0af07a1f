"""The cutting of a bundle's large files into parts that other files may share."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.builds import bundle, follow
from toolkit.bundle import Block, Bundle, open_bundle
from toolkit.bundle.blocks import BLOCK_BYTES, block_lists, bundle_blocks, cut, external_tensors, keep_block_lists
from toolkit.bundle.store import MANIFEST_NAME
from toolkit.config import cache_dir

MIB = 2**20


def test_a_file_is_cut_at_its_tensors_and_at_every_4_mib_of_a_long_one() -> None:
    assert cut(10, []) == [10]
    assert cut(10, [4, 4, 7, 0, 10, 99, -1]) == [4, 3, 3]
    assert cut(9 * MIB, [MIB]) == [MIB, BLOCK_BYTES, BLOCK_BYTES]
    assert cut(9 * MIB, []) == [BLOCK_BYTES, BLOCK_BYTES, MIB]
    assert cut(9 * MIB, range(MIB)) == [BLOCK_BYTES, BLOCK_BYTES, MIB], "a graph that names absurdly many"


def test_the_tensors_are_those_that_onnx_finds() -> None:
    onnx = pytest.importorskip("onnx")
    graph = bundle("int4-rtn-b32").path / "model.onnx"
    model = onnx.load(str(graph), load_external_data=False)
    entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer]
    known = [(entry["location"], int(entry["offset"]), int(entry["length"])) for entry in entries if entry]
    assert len(known) > 50
    assert list(external_tensors(graph.read_bytes())) == known


@pytest.mark.parametrize("graph", [b"\xff" * 100, b"<html>", b"\x3a\x7f", b"\x3a\x80", bytes(1000), b"PK\x03\x04"])
def test_what_is_no_graph_is_a_value_error_or_has_no_tensors(graph: bytes) -> None:
    try:
        assert list(external_tensors(graph)) == []
    except (ValueError, IndexError):
        return


def test_blocks_cover_the_file_and_are_computed_once() -> None:
    built = bundle("int4-rtn-b32")
    weights = next(artifact for artifact in built.manifest.artifacts if artifact.path == "model.onnx.data")
    found = follow(bundle_blocks(built))
    assert list(found) == [weights.sha256], "the other files are small"
    content = (built.path / weights.path).read_bytes()
    ends = [0]
    for block in found[weights.sha256]:
        ends.append(ends[-1] + block.length)
    for (begin, end), block in zip(pairwise(ends), found[weights.sha256], strict=True):
        assert hashlib.sha256(content[begin:end]).hexdigest() == block.sha256
    assert ends[-1] == len(content)
    file = cache_dir() / "blocks" / f"{weights.sha256}.json"
    stamp = file.stat().st_mtime_ns
    assert follow(bundle_blocks(built)) == found
    assert file.stat().st_mtime_ns == stamp


def without_its_files(built: Bundle, folder: Path) -> Bundle:
    folder.mkdir()
    (folder / MANIFEST_NAME).write_bytes(built.manifest_bytes)
    return open_bundle(folder)


def test_lists_travel_to_who_has_not_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = bundle("int4-rtn-b32")
    found = follow(bundle_blocks(built))
    lists = block_lists(found)
    monkeypatch.setenv("EDGEPHI_CACHE_DIR", str(tmp_path / "elsewhere"))
    remote = without_its_files(built, tmp_path / "remote")
    assert follow(bundle_blocks(remote)) == {}
    keep_block_lists(lists, built.manifest)
    assert follow(bundle_blocks(remote)) == found
    (sha256,) = found
    keep_block_lists(json.dumps({sha256: [[1, "0" * 64]] * 5}).encode(), built.manifest)
    assert follow(bundle_blocks(remote)) == found, "what is known already is kept"


@pytest.mark.parametrize(
    "lists",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"SHA": null}',
        b'{"SHA": [[4, "x"]]}',
        b'{"SHA": [[1]]}',
        b'{"SHA": [[1.5, "HASH"]]}',
        b'{"SHA": [[-1, "HASH"]]}',
        b'{"SHA": [[SIZE, "HASH"]]}',
        b'{"SHA": [[4, "HASH"]]}',
    ],
)
def test_lists_that_cannot_be_right_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: bytes) -> None:
    monkeypatch.setenv("EDGEPHI_CACHE_DIR", str(tmp_path / "elsewhere"))
    built = bundle("int4-rtn-b32")
    weights = next(artifact for artifact in built.manifest.artifacts if artifact.path == "model.onnx.data")
    raw = lists.replace(b"SHA", weights.sha256.encode()).replace(b"HASH", b"0" * 64)
    raw = raw.replace(b"SIZE", str(weights.size_bytes).encode())
    keep_block_lists(raw, built.manifest)
    assert not (cache_dir() / "blocks").exists()


@pytest.mark.parametrize("kept", ["", "{", "[[1]]", "[[1, 2, 3]]", '[[5, "aa"]]', "null"])
def test_a_damaged_cache_is_computed_again(kept: str) -> None:
    built = bundle("int4-rtn-b32")
    found = follow(bundle_blocks(built))
    [(sha256, blocks)] = found.items()
    file = cache_dir() / "blocks" / f"{sha256}.json"
    file.write_text(kept)
    assert follow(bundle_blocks(built)) == found
    assert json.loads(file.read_text()) == [[block.length, block.sha256] for block in blocks]
    assert isinstance(blocks[0], Block)
