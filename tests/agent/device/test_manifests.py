"""Hostile manifests and signatures on the device: the agent refuses them too, before it changes anything."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.support import hostile
from tests.support.requests import ask, deliver, install
from toolkit.agent.device.manifests import read_manifest, read_signatures
from toolkit.agent.device.protocol import AgentFailure


def refusal(text: str) -> str:
    release = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    with pytest.raises(AgentFailure) as caught:
        read_manifest(text, release)
    assert caught.value.code == "corrupt"
    return caught.value.message


@pytest.mark.parametrize("path", hostile.PATHS)
def test_hostile_path(path: str) -> None:
    assert "unsafe file" in refusal(hostile.manifest_text([hostile.artifact(path)]))


@pytest.mark.parametrize("path", hostile.CONTROL_PATHS)
def test_path_that_a_terminal_or_the_system_would_obey(path: str) -> None:
    assert "control characters" in refusal(hostile.manifest_text([hostile.artifact(path)]))


@pytest.mark.parametrize(("paths", "why"), hostile.CLASHES)
def test_paths_that_exclude_each_other(paths: list[str], why: str) -> None:
    assert why in refusal(hostile.manifest_text([hostile.artifact(path) for path in paths]))


@pytest.mark.parametrize("size", hostile.SIZES)
def test_absurd_size(size: object) -> None:
    said = refusal(hostile.manifest_text([hostile.artifact(size_bytes=size)]))
    assert "not a size" in said or "no number" in said


@pytest.mark.parametrize("sha256", hostile.HASHES)
def test_hash_that_is_none(sha256: object) -> None:
    said = refusal(hostile.manifest_text([hostile.artifact(sha256=sha256)]))
    assert "not a SHA-256" in said or "control characters" in said


@pytest.mark.parametrize("artifacts", [None, {}, "a", 1, [None], [[]], ["a"], [{}], [{"path": 1}]])
def test_lists_that_are_none(artifacts: Any) -> None:
    assert refusal(hostile.manifest_text(artifacts)).startswith("the manifest is refused: ")


def test_too_many_artifacts() -> None:
    assert "at most 10000" in refusal(hostile.manifest_text(hostile.too_many()))


@pytest.mark.parametrize("kind", [kind for kind, (raw, _) in hostile.TEXTS.items() if raw.isascii()])
def test_text_that_is_no_manifest(kind: str) -> None:
    assert refusal(hostile.TEXTS[kind][0].decode()).startswith("the manifest is refused: ")


@pytest.mark.parametrize("release", ["0" * 64, "0" * 63, "../" + "0" * 61, "F" * 64, ""])
def test_a_release_of_another_name(release: str) -> None:
    with pytest.raises(AgentFailure):
        read_manifest(hostile.manifest_text([]), release)


def test_nothing_is_touched(root: Path) -> None:
    before = sorted(root.rglob("*"))
    for artifacts in ([hostile.artifact("../escape")], [hostile.artifact(size_bytes=10**30)], hostile.too_many()):
        text = hostile.manifest_text(artifacts)
        release = hashlib.sha256(text.encode()).hexdigest()
        assert ask(root, "install", release=release, manifest=text)["error"]["code"] == "corrupt"
    assert ask(root, "install", release="0" * 64, manifest="{}")["error"]["code"] == "corrupt"
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    "signatures",
    [
        {"../../current.json": "x"},
        {"a/b.sig": "x"},
        {"a.txt": "x"},
        {".sig": "x"},
        {"CON.sig": "x"},
        {"a\n.sig": "x"},
        {"a.sig": "x" * 100_000},
        {f"{number}.sig": "x" for number in range(33)},
    ],
)
def test_what_cannot_be_a_signature(signatures: dict[str, str]) -> None:
    with pytest.raises(AgentFailure):
        read_signatures(signatures)


def test_signatures_are_kept_beside_the_manifest(root: Path) -> None:
    text, release = deliver(root, {"a": b"x"})
    ask(root, "install", release=release, manifest=text, signatures={"alice.sig": "first"})
    again = ask(root, "install", release=release, manifest=text, signatures={"bob.sig": "second"})
    assert again["result"] == {"release": release, "installed": False}
    found = ask(root, "manifest", release=release)["result"]
    assert found == {"release": release, "manifest": text, "signatures": {"alice.sig": "first", "bob.sig": "second"}}
    assert ask(root, "verify")["result"]["releases"][0]["damaged"] == []


def test_a_release_without_signatures_has_none(root: Path) -> None:
    release = install(root, {"a": b"x"})
    assert ask(root, "manifest", release=release)["result"]["signatures"] == {}
    assert ask(root, "manifest", release="0" * 64)["error"]["code"] == "no_release"
