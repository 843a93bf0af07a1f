"""Blocks: the parts of a bundle's large files that other bundles may share. A block that a device has isn't sent again.

A file is cut at the tensors that its ONNX graph places in it, and a long tensor at every 4 MiB. So a block is the same
wherever it stands in a file: recipes of one model share tensors, but the data before them differs in length.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle.manifest import Artifact, Manifest, canonical_json
from toolkit.bundle.store import Bundle
from toolkit.config import cache_dir
from toolkit.events import Progress, Service
from toolkit.files import write_whole
from toolkit.untrusted import read_json, read_json_file

BLOCK_BYTES = 4 * 2**20
# Files are compared with those of a device in chunks of 1 MiB: a smaller file can't gain anything.
LEAST_FILE_BYTES = 2**20
# A graph with its weights outside has a few megabytes at most.
_LARGEST_GRAPH_BYTES = 64 * 2**20
# Phi-3-medium has some 3,000; a graph that names many more isn't worth the length of its list.
_MOST_BLOCKS = 2**16
# The lists of a few files with so many blocks each.
LARGEST_LISTS_BYTES = 16 * 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")
# onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.external_data, StringStringEntryProto.
_GRAPH, _INITIALIZER, _EXTERNAL_DATA, _KEY, _VALUE = 7, 5, 13, 1, 2
# Devices of one rollout get the same bundle at the same time: one thread hashes it, and the others wait.
_hashing = threading.Lock()


@dataclass(frozen=True)
class Block:
    """A part of a file. A file's blocks lie one behind the other and cover it."""

    length: int
    sha256: str


def bundle_blocks(bundle: Bundle) -> Service[dict[str, tuple[Block, ...]]]:
    """The blocks of a bundle's large files, by the SHA-256 of the file. They are computed once, then cached.

    The blocks of a file that isn't here are known only if its list was kept.
    """
    found: dict[str, tuple[Block, ...]] = {}
    starts: dict[str, list[int]] | None = None
    while not _hashing.acquire(timeout=0.2):
        yield Progress("hash tensors", 0, None, "bytes")
    try:
        for artifact in _large(bundle.manifest):
            cached = _cached(artifact)
            blocks = _read(cached, artifact.size_bytes)
            if blocks is None and not (bundle.path / artifact.path).is_file():
                continue
            if blocks is None:
                starts = _tensor_starts(bundle) if starts is None else starts
                lengths = cut(artifact.size_bytes, starts.get(artifact.path, []))
                blocks = yield from _hash(bundle.path / artifact.path, lengths, artifact.size_bytes)
                _write(cached, blocks)
            found[artifact.sha256] = blocks
    finally:
        _hashing.release()
    return found


def block_lists(blocks: Mapping[str, Sequence[Block]]) -> bytes:
    """The lists of `bundle_blocks` for machines without the files: the same bytes for the same bundle everywhere."""
    return canonical_json(lists_of(blocks)).encode()


def keep_block_lists(raw: bytes, manifest: Manifest) -> None:
    """Keep the lists that came with a bundle whose files aren't here; lists that can't be right are left out.

    The lists needn't be trusted: they tell where to look for bytes, which are hashed again before they count.
    """
    try:
        lists = read_json(raw)
    except ValueError:
        return
    for artifact in _large(manifest):
        cached = _cached(artifact)
        blocks = _parsed(lists.get(artifact.sha256), artifact.size_bytes) if isinstance(lists, dict) else None
        if blocks is not None and not cached.exists():
            _write(cached, blocks)


def _large(manifest: Manifest) -> list[Artifact]:
    return [artifact for artifact in manifest.artifacts if artifact.size_bytes >= LEAST_FILE_BYTES]


def _cached(artifact: Artifact) -> Path:
    return cache_dir() / "blocks" / f"{artifact.sha256}.json"


def cut(size_bytes: int, starts: Collection[int]) -> list[int]:
    """Lengths of the blocks of a file whose tensors begin, or end, at `starts`."""
    edges = sorted({0, size_bytes, *(start for start in starts if 0 < start < size_bytes)})
    lengths = []
    for begin, end in itertools.pairwise(edges):
        lengths += [min(BLOCK_BYTES, end - start) for start in range(begin, end, BLOCK_BYTES)]
    return lengths if len(lengths) <= _MOST_BLOCKS or not starts else cut(size_bytes, [])


def _hash(path: Path, lengths: list[int], total: int) -> Service[tuple[Block, ...]]:
    blocks, done = [], 0
    with path.open("rb") as file:
        for length in lengths:
            blocks.append(Block(length, hashlib.sha256(file.read(length)).hexdigest()))
            done += length
            yield Progress("hash tensors", done, total, "bytes")
    return tuple(blocks)


def _read(path: Path, size_bytes: int) -> tuple[Block, ...] | None:
    try:
        return _parsed(read_json_file(path, LARGEST_LISTS_BYTES), size_bytes)
    except (OSError, ValueError):
        return None


def _parsed(value: object, size_bytes: int) -> tuple[Block, ...] | None:
    """The blocks of a file of that size; None for a value that can't be its list."""
    if not isinstance(value, list) or len(value) > _MOST_BLOCKS:
        return None
    blocks = []
    for entry in value:
        match entry:
            case [int(length), str(sha256)] if 0 < length <= BLOCK_BYTES and _SHA256.fullmatch(sha256):
                blocks.append(Block(length, sha256))
            case _:
                return None
    return tuple(blocks) if sum(block.length for block in blocks) == size_bytes else None


def lists_of(blocks: Mapping[str, Sequence[Block]]) -> dict[str, list[list[int | str]]]:
    """The lists of files, by the SHA-256 of each."""
    return {sha256: as_json(found) for sha256, found in blocks.items()}


def as_json(blocks: Iterable[Block]) -> list[list[int | str]]:
    """A file's blocks as they stand in lists: length and SHA-256 of each."""
    return [[block.length, block.sha256] for block in blocks]


def _write(path: Path, blocks: Iterable[Block]) -> None:
    write_whole(path, json.dumps(as_json(blocks)))


def _tensor_starts(bundle: Bundle) -> dict[str, list[int]]:
    """The offsets where tensors begin and end in a bundle's files, by path; unreadable graphs are passed over."""
    starts: dict[str, list[int]] = {}
    for artifact in bundle.manifest.artifacts:
        if not artifact.path.endswith(".onnx") or artifact.size_bytes > _LARGEST_GRAPH_BYTES:
            continue
        folder = artifact.path.rpartition("/")[0]
        try:
            for location, offset, length in external_tensors((bundle.path / artifact.path).read_bytes()):
                path = f"{folder}/{location}" if folder else location
                starts.setdefault(path, []).extend((offset, offset + length))
        except (ValueError, IndexError):
            continue
    return starts


def external_tensors(graph: bytes) -> Iterator[tuple[str, int, int]]:
    """File, offset and length of every initializer that an ONNX model keeps outside.

    Raises ValueError or IndexError for bytes that aren't an ONNX model.
    """
    for tensor in _inside(_inside([memoryview(graph)], _GRAPH), _INITIALIZER):
        entries = {_text(entry, _KEY): _text(entry, _VALUE) for entry in _inside([tensor], _EXTERNAL_DATA)}
        if "location" in entries and "length" in entries:
            yield entries["location"], int(entries.get("offset", "0")), int(entries["length"])


def _text(message: memoryview, field: int) -> str:
    return "".join(str(value, "utf-8") for value in _inside([message], field))


def _inside(messages: Iterable[memoryview], field: int) -> Iterator[memoryview]:
    """The values of a length-delimited field in protobuf messages; others are skipped."""
    for message in messages:
        position = 0
        while position < len(message):
            key, position = _varint(message, position)
            kind, length = key & 7, 0
            if kind == 0:
                _, position = _varint(message, position)
            elif kind == 2:
                length, position = _varint(message, position)
            elif kind in (1, 5):
                length = 8 if kind == 1 else 4
            else:
                raise ValueError(f"no protobuf: a field of kind {kind}")
            if length > len(message) - position:
                raise ValueError("no protobuf: it ends in the middle of a field")
            if kind == 2 and key >> 3 == field:
                yield message[position : position + length]
            position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("no protobuf: a number without an end")
