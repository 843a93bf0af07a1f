"""Files of others, as Hypothesis makes them: each reader gives a typed value, or an error in words."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, strategies as st

from tests.support import bundles, untrusted_inputs as inputs
from tests.support.paths import REPO
from tests.support.untrusted_inputs import AWKWARD_FILES, held
from toolkit.bench import read_eval_text
from toolkit.bench.lm_eval_tasks import task_name
from toolkit.bundle import open_bundle
from toolkit.bundle.blocks import external_tensors, keep_block_lists
from toolkit.bundle.manifest import Manifest, parse_manifest
from toolkit.bundle.signatures import read_signatures
from toolkit.catalog import load_profile, load_recipe
from toolkit.catalog.model import model_files, open_model
from toolkit.catalog.preset import read_preset
from toolkit.catalog.shape import ModelShape, read_shape
from toolkit.catalog.signer import parse_signers, read_public_key
from toolkit.catalog.target import parse_target
from toolkit.catalog.toml import read_toml
from toolkit.catalog.workload import load_workload
from toolkit.cli import tables
from toolkit.config import data_path
from toolkit.deploy.wheels import read_lock
from toolkit.jobs.rollout.record import Rollout, read_rollout, rollout_exit_code, stop_reason
from toolkit.jobs.tune.proposal import Space
from toolkit.jobs.tune.study import open_study
from toolkit.metrics import plan
from toolkit.metrics.kept_reports import find_report
from toolkit.metrics.measurement import Measurement, find_measurement, measurements_dir
from toolkit.metrics.report import Report, read_report, reports_dir, to_json
from toolkit.metrics.speed import SpeedBook
from toolkit.optimize.calibration import read_texts

pytestmark = pytest.mark.fuzz

REPORT = json.loads((REPO / "tests/data/reports/v1-phi3-nano.json").read_text())
ROLLOUT = json.loads((REPO / "tests/data/rollouts/v1-three-devices.json").read_text())
NANO = data_path("phi3-nano")
CONFIG = json.loads((NANO / "config.json").read_text())
PRESET = json.loads(next(data_path("presets").glob("phi-3-mini-128k.json")).read_text())
LOCK = json.loads(next(data_path("wheels").glob("*.json")).read_text())
MANIFEST = bundles.manifest(()).model_dump(mode="json") | {
    "artifacts": [{"path": "model.onnx", "size_bytes": 3, "sha256": "0" * 64}],
    "plan": {
        "bundle_bytes": 3, "base_bytes": 3, "load_bytes": 3, "kv_bytes_per_token": 3, "prompt_bytes_per_token": 3,
        "read_bytes_per_token": 3, "prompt_ops_per_token": 3, "attention_ops": 3, "step_s": 0.1,
    },
    "quality": {"held-out": REPORT["quality"]["held-out"]} if REPORT.get("quality") else {},
}  # fmt: skip
LOCAL = load_profile("local")
RECIPE = load_recipe("int4-rtn-b32")


def drawn(report: Report) -> None:
    """All that is derived from a report, and drawn."""
    to_json(report)
    tables.report_rows([report])
    tables.footnotes([report])
    tables.predicted_rows([report])


@given(inputs.raw(REPORT))
def test_reports(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    found = held(lambda: read_report(path))
    if isinstance(found, Report):
        held(lambda: drawn(found))


@given(inputs.mutated(REPORT))
def test_kept_reports_and_the_speeds_that_follow(tmp_path: Path, report: Any) -> None:
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    reports_dir().mkdir(parents=True)
    target = REPORT["target"]
    (reports_dir() / f"20260101T000000Z-{target}-{REPORT['bundle_id'][:8]}-0000.json").write_bytes(
        inputs.encoded(report)
    )
    held(lambda: find_report(target=target, bundle_id=REPORT["bundle_id"]))
    shape = read_shape(NANO / "config.json", "nano")
    held(lambda: plan(shape, RECIPE, LOCAL, known=SpeedBook(LOCAL, target)))


@given(inputs.raw([["target", 1], {"name.json": [1, 2, 3, "a", "b", "c", "d", "e", "f", None]}]))
def test_the_index_of_reports(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data" / "report-index").mkdir(parents=True, exist_ok=True)
    (tmp_path / "data" / "report-index" / "pi5.json").write_bytes(content)
    held(lambda: find_report(target="pi5"))


@given(inputs.raw(ROLLOUT))
def test_records_of_rollouts(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rollout.json"
    path.write_bytes(content)
    found = held(lambda: read_rollout(path))
    if isinstance(found, Rollout):
        held(lambda: (stop_reason(found.devices, 0), rollout_exit_code(found.devices)))


@given(
    inputs.raw({"target": "pi5", "target_key": "k", "created_utc": "x", "read_bytes_per_s": 1e9, "kernels_per_s": 5.0})
)
def test_measurements(tmp_path: Path, content: bytes) -> None:
    (measurements_dir()).mkdir(parents=True, exist_ok=True)
    (measurements_dir() / "pi5-k.json").write_bytes(content)
    found = held(lambda: find_measurement("pi5"))
    if isinstance(found, Measurement):
        held(lambda: plan(read_shape(NANO / "config.json", "nano"), RECIPE, LOCAL, known=SpeedBook(LOCAL, "pi5")))


@given(inputs.raw(MANIFEST))
def test_manifests(content: bytes) -> None:
    found = held(lambda: parse_manifest(content, "here"))
    if isinstance(found, Manifest):
        held(lambda: (found.identity, found.size_bytes))
        if found.plan is not None:
            held(lambda: found.plan.largest_context(2**33, 512))


@given(inputs.raw(MANIFEST), inputs.raw({"0" * 64: [[3, "0" * 64]]}), st.binary(max_size=100))
def test_bundles_in_a_folder(tmp_path: Path, content: bytes, lists: bytes, signature: bytes) -> None:
    folder = tmp_path / "bundle"
    (folder / "signatures").mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_bytes(content)
    (folder / "signatures" / "0123456789abcdef.sig").write_bytes(signature)
    found = held(lambda: open_bundle(folder))
    if not isinstance(found, Exception):
        held(lambda: read_signatures(found))
        held(lambda: keep_block_lists(lists, found.manifest))


@given(st.binary(max_size=300))
def test_graphs(content: bytes) -> None:
    held(lambda: list(external_tensors(content)), ValueError, IndexError)


@given(inputs.raw(CONFIG))
def test_configurations_of_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    found = held(lambda: read_shape(path, "here"))
    if isinstance(found, ModelShape):
        held(lambda: plan(found, RECIPE, LOCAL))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(NANO, tmp_path_factory.mktemp("models") / "nano"))


HEADER = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"format": "pt"}}


@given(inputs.raw(HEADER), st.sampled_from([0, 1, -1, 2**40]) | st.integers(0, 2**64 - 1), st.binary(max_size=8))
def test_headers_of_weights(model: Path, header: bytes, length: int, tail: bytes) -> None:
    said = len(header) + length if abs(length) < 2 else length % 2**64
    (model / "model.safetensors").write_bytes(struct.pack("<Q", max(0, said)) + header + tail)
    held(lambda: open_model(model))


@given(inputs.raw({"metadata": {"total_size": 4}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}))
def test_indexes_of_weights(model: Path, content: bytes) -> None:
    index = model / "model.safetensors.index.json"
    index.write_bytes(content)
    try:
        found = held(lambda: open_model(model))
        if not isinstance(found, Exception):
            held(lambda: model_files(found))
    finally:
        index.unlink()


@given(inputs.raw(PRESET))
def test_presets(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "preset.json"
    path.write_bytes(content)
    held(lambda: read_preset(path))


@given(inputs.raw(LOCK))
def test_locks_of_wheels(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lock.json"
    path.write_bytes(content)
    held(lambda: read_lock(path))


def toml(table: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """TOML of a mutated table, and other bytes."""

    def written(value: Any) -> bytes:
        try:
            return tomli_w.dumps(value).encode("utf-8", "surrogatepass")
        except (TypeError, ValueError, AttributeError, RecursionError):
            return repr(value).encode("utf-8", "surrogatepass")

    odd = [
        b"a = " + b"[" * 60_000,
        b"a = " + b"9" * 5000,
        b"a = inf",
        b"a = 1e999",
        b'a = "\\u0000"',
        b"[" + b"a." * 9999 + b"b]",
    ]
    return inputs.mutated(table).map(written) | st.sampled_from(odd) | st.binary(max_size=100)


TARGET = {"schema_version": 1, "host": "pi5.lan", "port": 22, "user": "me", "profile": "local", "tags": ["a"],
          "install_root": "~/.edgephi", "python": "python3", "identity_file": "~/.ssh/id"}  # fmt: skip
READERS: dict[str, tuple[dict[str, Any], Callable[[Path], object]]] = {
    "profile": (read_toml(REPO / "profiles/raspberry-pi-5-8gb.toml"), lambda path: load_profile(str(path))),
    "child profile": (
        {"schema_version": 1, "extends": "local", "description": "d"},
        lambda path: load_profile(str(path)),
    ),
    "target": (TARGET, lambda path: parse_target("pi5", read_toml(path), path)),
    "workload": (read_toml(REPO / "benchmarks/workloads/quick.toml"), lambda path: load_workload(str(path))),
    "recipe": (read_toml(data_path("recipes") / "int4-gptq-b32.toml"), lambda path: load_recipe(str(path))),
}


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_toml(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    table, read = READERS[kind]
    path = tmp_path / "mine.toml"
    path.write_bytes(data.draw(toml(table)))
    found = held(lambda: read(path))
    if kind == "recipe" and not isinstance(found, Exception):
        held(lambda: plan(read_shape(NANO / "config.json", "nano"), found, LOCAL))
    if "profile" in kind and not isinstance(found, Exception):
        held(lambda: plan(read_shape(NANO / "config.json", "nano"), RECIPE, found))


KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIFnk4Vx3MjUd6GgK6h6xsOd6DqJ9yqkCgWmQz7m1mB0k"


@given(inputs.lines(f'me@here namespaces="edgephi-bundle" ssh-ed25519 {KEY} comment'))
def test_files_of_signers(tmp_path: Path, content: bytes) -> None:
    held(lambda: list(parse_signers(content.decode("utf-8", "replace"))))
    path = tmp_path / "key.pub"
    path.write_bytes(content)
    held(lambda: read_public_key(path))


@given(inputs.raw({"text": "Who was Noah?"}))
@pytest.mark.parametrize("ending", ["jsonl", "txt"])
def test_texts(ending: str, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"text.{ending}"
    path.write_bytes(content)
    held(lambda: list(read_texts(path)))
    held(lambda: read_eval_text(path, tokens=64, window_tokens=32))
    held(lambda: task_name(path))


JOURNAL = {"op_code": 0, "worker_id": "w", "study_name": "edgephi", "directions": [1]}


@given(st.lists(inputs.raw(JOURNAL), max_size=3).map(lambda lines: b"\n".join(lines) + b"\n"))
def test_journals_of_searches(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("optuna")
    folder = tmp_path / "study"
    folder.mkdir(exist_ok=True)
    (folder / "study.journal").write_bytes(content)

    def look() -> None:
        with open_study(folder, Space(("a",), (1,), (0,), (0,), (4,)), maximize=True) as study:
            _ = study.trials

    held(look)


FILES: dict[str, Callable[[Path], object]] = {
    "report": read_report,
    "rollout": read_rollout,
    "configuration": lambda path: read_shape(path, "here"),
    "preset": read_preset,
    "lock": read_lock,
    "TOML": read_toml,
    "key": read_public_key,
    "text to calibrate with": lambda path: list(read_texts(path)),
    "text to evaluate": lambda path: read_eval_text(path, tokens=64, window_tokens=32),
    "task": task_name,
    "bundle": open_bundle,
    "model": open_model,
}


@pytest.mark.parametrize("what", AWKWARD_FILES)
@pytest.mark.parametrize("reader", FILES)
def test_what_stands_where_a_file_is_expected(reader: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "here"
    AWKWARD_FILES[what](path)
    found = held(lambda: FILES[reader](path))
    assert isinstance(found, Exception)
    assert "\n" not in str(found)


DEEP = b"[" * 60_000
NEWER = "a newer edgephi may have written it; --fresh starts that rollout anew"
FIFO = "a pipe that nobody writes to"
TYPED: list[tuple[str, bytes, tuple[str, ...], str]] = [
    (
        "nano/config.json",
        DEEP,
        ("plan", "../nano", "--profile", "local"),
        "config.json: not valid JSON: nested too deep\n",
    ),
    (
        "nano/config.json",
        b'{"architectures": ["Phi3ForCausalLM"], "num_hidden_layers": 1e999}',
        ("optimize", "../nano", "--profile", "local"),
        "config.json: not valid JSON: 1e999 is larger than any number here\n",
    ),
    (
        "nano/config.json",
        inputs.encoded(CONFIG | {"num_hidden_layers": 10**30}),
        ("plan", "../nano", "--profile", "local"),
        "nano: missing or not a positive whole number: layers\n",
    ),
    ("deep.toml", b"a = " + DEEP, ("plan", "phi3-nano", "--profile", "../deep.toml"), "deep.toml: nested too deep\n"),
    (
        "inf.toml",
        b'schema_version = 1\nextends = "local"\n[hardware]\nram = 1e999\n',
        ("plan", "phi3-nano", "--profile", "../inf.toml"),
        "inf.toml: hardware.ram: must be a finite number, not inf\n",
    ),
    (
        "nul.toml",
        b'schema_version = 1\nextends = "a\\u0000b"\n',
        ("plan", "phi3-nano", "--profile", "../nul.toml"),
        "nul.toml: extends: must not have a NUL character\n",
    ),
    (
        "data/rollouts/0123.json",
        DEEP,
        ("rollouts", "show", "0123"),
        f"not a rollout: nested too deep\n hint: {NEWER}\n",
    ),
]


@pytest.mark.parametrize(("name", "content", "words", "said"), TYPED, ids=[f"{row[0]}-{row[1][:9]!r}" for row in TYPED])
def test_what_is_typed_ends_in_words(
    name: str, content: bytes, words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    shutil.copytree(NANO, tmp_path / "nano")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
    done = subprocess.run([sys.executable, "-m", "toolkit", *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: ") and done.stderr.endswith(said), done.stderr


def test_a_pipe_in_a_model_folder_keeps_nobody_waiting(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(NANO, tmp_path / "nano", ignore=shutil.ignore_patterns("config.json")))
    AWKWARD_FILES[FIFO](folder / "config.json")
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", "plan", str(folder), "--profile", "local"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    assert "not a model folder: no config.json" in done.stderr
