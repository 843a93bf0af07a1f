"""Answers of hostile and broken agents: the host refuses each with a clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import follow
from tests.support.impostors import impostor, make_target, said
from toolkit.agent.answers import Answer, Evaluated, Missing, PrunedReleases, Releases, RolledBack, Verified
from toolkit.agent.requests import (
    Evaluate,
    FindMissing,
    ListReleases,
    Prune,
    Request,
    RollBack,
    TakeProbe,
    Verify,
)
from toolkit.deploy.push import Upload, push
from toolkit.device import connect
from toolkit.errors import AgentError

SHA256 = "0123456789abcdef" * 4
MANIFEST = {"name": "small", "artifacts": [{"path": "model.onnx", "size_bytes": 3, "sha256": SHA256}], "later": {}}
RELEASE = {"release": SHA256, "manifest": MANIFEST, "installed_unix_s": 1.7e9, "active": True}
POINTER = {"pointer_version": 1, "release": SHA256, "runtime": "0123456789abcdef", "previous": []}
RELEASES = {"releases": [RELEASE], "pointer": POINTER}
MISSING = {"installed": False, "missing": [{"sha256": SHA256, "chunks": [SHA256]}], "free_bytes": 10}
WINDOW = {"nll": 3.0, "reference_nll": 2.5, "kld": [0.1, 0.2], "same_top": 1}
EVALUATED = {"windows": [WINDOW], "matches": [0.5], "stepwise": False}
VERIFIED = {"releases": [{"release": SHA256, "damaged": ["model.onnx"]}], "active": None, "repaired": False}
PRUNED = {"removed": [SHA256], "kept": [], "freed_bytes": 12}
# The request that each class of answers belongs to.
ASKED: dict[type[Answer], Request[Any]] = {
    Missing: FindMissing(artifacts=[]),
    Releases: ListReleases(),
    RolledBack: RollBack(),
    Verified: Verify(),
    PrunedReleases: Prune(keep=0),
    Evaluated: Evaluate(windows=[], continuations=[]),
}


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answer of the real agent to one probe of this machine."""
    with connect(make_target(tmp_path_factory.mktemp("probed") / "root")) as device:
        return device.ask(TakeProbe()).as_json()


def changed(value: Any, place: str, new: Any) -> Any:
    """A copy with another value at `place`, as in `releases.0.manifest.name`."""
    copy = json.loads(json.dumps(value))
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    inner = copy
    for part in path:
        inner = inner[part]
    inner[last] = new
    return copy


def test_what_an_older_or_newer_agent_adds_is_no_matter(tmp_path: Path) -> None:
    answer = impostor(tmp_path, said(tmp_path, "result", {**RELEASES, "more": 1})).ask(ListReleases())
    assert answer.model_dump(mode="json", exclude_unset=True) == RELEASES, "JSON output loses nothing"
    assert answer.releases[0].manifest.size_bytes == 3


@pytest.mark.parametrize(
    ("answer", "good", "place", "bad", "words"),
    [
        (Missing, MISSING, "free_bytes", "much", "free_bytes: Input should be a valid integer: 'much'"),
        (Missing, MISSING, "free_bytes", True, "free_bytes: Input should be a valid integer: True"),
        (Missing, MISSING, "free_bytes", -1, "free_bytes: Input should be greater than or equal to 0: -1"),
        (Missing, MISSING, "free_bytes", 10**300, "free_bytes: Input should be less than"),
        (Missing, MISSING, "missing", {"sha256": SHA256}, "missing: Input should be a valid tuple"),
        (Missing, MISSING, "missing.0.sha256", "../../../etc/passwd", "missing.0.sha256: String should match pattern"),
        (Missing, MISSING, "missing.0.sha256", SHA256 + "\n", "missing.0.sha256: String should match pattern"),
        (Missing, MISSING, "missing.0.chunks.0", None, "missing.0.chunks.0: Input should be a valid string"),
        (Missing, MISSING, "missing.0.chunks", ["", SHA256], "missing.0.chunks.0: String should match pattern"),
        (Missing, MISSING, "installed", "no", "installed: Input should be a valid boolean: 'no'"),
        (Releases, RELEASES, "releases.0.release", "a/../../b", "releases.0.release: String should match pattern"),
        (Releases, RELEASES, "releases.0.installed_unix_s", 1e300, "installed_unix_s: Input should be less than"),
        (Releases, RELEASES, "releases.0.manifest", [], "releases.0.manifest: Input should be a valid dictionary"),
        (Releases, RELEASES, "releases.0.manifest.name", 7, "manifest.name: Input should be a valid string"),
        (Releases, RELEASES, "releases.0.manifest.name", "x" * 5000, "name: String should have at most 4096"),
        (Releases, RELEASES, "releases.0.manifest.artifacts.0.size_bytes", -5, "size_bytes: Input should be greater"),
        (Releases, RELEASES, "pointer.runtime", "../../bin/sh", "pointer.runtime: String should match pattern"),
        (Releases, RELEASES, "pointer.previous", [{"release": 1, "runtime": None}], "previous.0.release: Input should"),
        (Releases, RELEASES, "pointer", None, "pointer: Input should be a valid dictionary"),
        (RolledBack, {"release": SHA256}, "release", None, "release: Input should be a valid string: None"),
        (Verified, VERIFIED, "releases.0.damaged", "model.onnx", "damaged: Input should be a valid tuple"),
        (PrunedReleases, PRUNED, "removed.0", 12, "removed.0: Input should be a valid string: 12"),
        (Evaluated, EVALUATED, "windows", [], "windows: Tuple should have at least 1 item"),
        (Evaluated, EVALUATED, "windows.0.kld", [], "kld: Tuple should have at least 1 item"),
        (Evaluated, EVALUATED, "windows.0.same_top", 3, "windows.0: Value error, 3 of 2 tokens"),
        (Evaluated, EVALUATED, "matches.0", 1.5, "matches.0: Input should be less than or equal to 1: 1.5"),
    ],
)
def test_an_answer_that_cannot_be_right_is_refused_with_what_is_wrong(
    tmp_path: Path, answer: type[Answer], good: Any, place: str, bad: Any, words: str
) -> None:
    request = ASKED[answer]
    assert isinstance(impostor(tmp_path, said(tmp_path, "result", good)).ask(request), answer)
    with pytest.raises(AgentError) as error:
        impostor(tmp_path, said(tmp_path, "result", changed(good, place, bad))).ask(request)
    assert error.value.message.startswith(f"here: the agent's answer to '{request.op}' can't be right: ")
    assert words in error.value.message
    assert len(error.value.message) < 400
    assert error.value.exit_code == 7


@pytest.mark.parametrize(
    ("place", "bad"),
    [
        ("arch", None),
        ("cores", 0),
        ("cores", 2**40),
        ("ram_bytes", "8 GB"),
        ("free_disk_bytes", -1),
        ("python", "three"),
        ("python", "3.11; rm -rf /"),
        ("glibc", "2.x"),
        ("root_mode", "rwx"),
        ("root_mode", "9" * 400),
        ("temp_c", 1e6),
        ("clock_unix_s", -1.0),
        ("throttled", {"throttled_now": 1}),
        ("accelerators", "cuda"),
        ("accelerators", [None]),
        ("power_modes", {"MAXN": "0"}),
        ("jetson", {"l4t": 36}),
        ("install_root", ["/"]),
        ("board", "x" * 10_000),
    ],
)
def test_a_probe_that_cannot_be_right_is_refused(tmp_path: Path, probed: dict[str, Any], place: str, bad: Any) -> None:
    later = probed | {"later": [1]}
    assert impostor(tmp_path, said(tmp_path, "result", later)).ask(TakeProbe()).as_json() == later
    with pytest.raises(AgentError, match=rf"here: the agent's answer to 'probe' can't be right: {place}"):
        impostor(tmp_path, said(tmp_path, "result", probed | {place: bad})).ask(TakeProbe())


@pytest.mark.parametrize("wrong", [["f" * 64], [SHA256, SHA256]])
def test_lacking_what_it_was_not_asked_for_sends_nothing(tmp_path: Path, wrong: list[str]) -> None:
    """With a hash of another file the agent could make the host read or send something else."""
    source = tmp_path / "file"
    source.write_bytes(b"abc")
    answer = {**MISSING, "missing": [{"sha256": sha256, "chunks": []} for sha256 in wrong], "free_bytes": 10**12}
    held = tmp_path / "held"
    held.write_text(json.dumps({"protocol": 1, "event": {"type": "held", "found": answer}}) + "\n")
    script = f"read -r line; cat {held}; read -r rest"
    with pytest.raises(AgentError, match=r"here: the agent lacks a file that it wasn't asked for: [f0]"):
        follow(push(impostor(tmp_path, script), [Upload(source, SHA256, 3)]))
    assert not (tmp_path / "root" / "incoming").exists()


def test_a_manifest_of_another_version_is_listed_but_not_used(tmp_path: Path) -> None:
    answer = impostor(tmp_path, said(tmp_path, "result", RELEASES)).ask(ListReleases())
    with pytest.raises(AgentError, match=r"here: the agent's answer about release 0123456789ab can't be right: "):
        answer.releases[0].parsed("here")
