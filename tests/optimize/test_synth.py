"""Synthesized models load, are complete or absent, and are written in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import follow
from toolkit.catalog.preset import PRESETS, Preset, preset
from toolkit.errors import ConfigError, HostDiskFull
from toolkit.events import Event, Progress
from toolkit.optimize import synth
from toolkit.optimize.synth import synthesize, tensors

np = pytest.importorskip("numpy")

PHI_3_MEDIUM_4K = PRESETS["phi-3-medium-4k"]
PHI_3_MINI_4K = PRESETS["phi-3-mini-4k"]
PHI_3_SMALL_8K = PRESETS["phi-3-small-8k"]
PHI_3_TINY_GQA = PRESETS["phi-3-tiny-gqa"]
PHI_3_TINY_LONGROPE = PRESETS["phi-3-tiny-longrope"]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """An empty folder to write into."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def read_header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__")
    return header


def test_published_parameter_counts() -> None:
    counted = {shape.name: sum(tensor.values for tensor in tensors(shape)) for shape in PRESETS.values()}
    assert counted == {shape.name: shape.parameters for shape in PRESETS.values()}
    assert counted["phi-3-mini-4k"] == counted["phi-3-mini-128k"] == 3_821_079_552
    assert counted["phi-3-small-8k"] == 7_392_272_384
    assert counted["phi-3-medium-4k"] == counted["phi-3-medium-128k"] == 13_960_238_080
    assert counted["phi-3.5-mini"] == 3_821_079_552
    assert counted["phi-4-mini"] == 3_836_021_760


@pytest.mark.parametrize("name", [name for name, shape in PRESETS.items() if shape.long_factor])
def test_longrope_has_a_factor_for_every_frequency(name: str) -> None:
    shape = PRESETS[name]
    assert len(shape.short_factor) == len(shape.long_factor) == shape.rotary_dim // 2
    assert list(shape.long_factor) == sorted(shape.long_factor)


def test_phi4_mini_is_configured_as_published() -> None:
    config = PRESETS["phi-4-mini"].config()
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (199999, 200020, 199999)
    assert config["partial_rotary_factor"] == 0.75
    assert "partial_rotary_factor" not in PRESETS["phi-3.5-mini"].config()


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        preset("phi-3-huge")
    assert "phi-3-mini-4k" in str(caught.value.hint)


@pytest.mark.parametrize("shape", [PHI_3_TINY_GQA, PHI_3_TINY_LONGROPE], ids=lambda shape: shape.name)
def test_loads_in_transformers(shape: Preset, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = follow(synthesize(shape, tmp_path / "model", layers=None))

    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert type(model).__name__ == "Phi3ForCausalLM"
    assert not any(report.values()), report
    weight = model.model.layers[1].mlp.gate_up_proj.weight.detach()
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(weight.mean().item()) < 2e-4
    assert bool((model.model.norm.weight == 1).all())
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert logits.shape == (1, 3, shape.vocab_size)
    assert bool(logits.isfinite().all())


def test_a_cut_of_the_mini_shape_loads(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = follow(synthesize(PHI_3_MINI_4K, tmp_path / "model", layers=1))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) == PHI_3_MINI_4K.cut(1).parameters
    assert model.config.num_hidden_layers == 1


def test_phi3_small_has_the_published_names() -> None:
    names = {tensor.name: tensor.shape for tensor in tensors(PHI_3_SMALL_8K)}
    assert names["model.layers.31.self_attn.query_key_value.weight"] == (6144, 4096)
    assert names["model.layers.0.self_attn.dense.bias"] == (4096,)
    assert names["model.layers.0.mlp.up_proj.weight"] == (28672, 4096)
    assert names["model.final_layernorm.bias"] == (4096,)
    assert "lm_head.weight" not in names, "the head is the embedding"


def test_index_names_every_tensor_once(tmp_path: Path) -> None:
    folder = follow(synthesize(PHI_3_TINY_GQA, tmp_path / "model", layers=None, shard_bytes=1_000_000))
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"

    headers = {shard.name: read_header(shard) for shard in shards}
    found = {name: shard for shard, header in headers.items() for name in header}
    assert found == index["weight_map"]
    assert list(index["weight_map"]) == [tensor.name for tensor in tensors(PHI_3_TINY_GQA)]
    assert index["metadata"]["total_size"] == 2 * PHI_3_TINY_GQA.parameters
    for shard in shards:
        data_bytes = max(tensor["data_offsets"][1] for tensor in headers[shard.name].values())
        with shard.open("rb") as stream:
            assert shard.stat().st_size == 8 + int.from_bytes(stream.read(8), "little") + data_bytes


def test_same_seed_same_bytes_and_a_cut_shares_its_layers(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    shard = "model-00001-of-00001.safetensors"
    full = follow(synthesize(PHI_3_TINY_GQA, tmp_path / "full", layers=None)) / shard
    again = follow(synthesize(PHI_3_TINY_GQA, tmp_path / "again", layers=None)) / shard
    cut = follow(synthesize(PHI_3_TINY_GQA, tmp_path / "cut", layers=1)) / shard
    other = follow(synthesize(PHI_3_TINY_GQA, tmp_path / "other", layers=1, seed=1)) / shard
    assert full.read_bytes() == again.read_bytes()

    whole, part, reseeded = (safetensors.load_file(file) for file in (full, cut, other))
    assert all(torch.equal(value, whole[name]) for name, value in part.items())
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(part[name], reseeded[name])


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    events: list[Event] = []
    follow(synthesize(PHI_3_TINY_GQA, tmp_path / "model", layers=1), events)
    total = 2 * PHI_3_TINY_GQA.cut(1).parameters
    seen = [(event.done, event.total) for event in events if isinstance(event, Progress)]
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_an_interrupted_write_leaves_nothing(parent: Path) -> None:
    service = synthesize(PHI_3_TINY_GQA, parent / "model", layers=None)
    next(service)
    with pytest.raises(KeyboardInterrupt):
        service.throw(KeyboardInterrupt)
    assert list(parent.iterdir()) == []


def test_a_killed_write_leaves_no_model_and_does_not_block_the_next(parent: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from toolkit.optimize.synth import synthesize\nfrom toolkit.catalog.preset import PRESETS\n"
        "next(synthesize(PRESETS['phi-3-tiny-gqa'], Path(sys.argv[1]), layers=None))\nos._exit(9)\n"
    )
    out = parent / "model"
    assert subprocess.run([sys.executable, "-c", script, str(out)], check=False).returncode == 9
    assert not out.exists()
    assert (follow(synthesize(PHI_3_TINY_GQA, out, layers=1)) / "config.json").is_file()
    assert list(parent.iterdir()) == [out]


def test_refuses_a_folder_with_content(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="already exists"):
        follow(synthesize(PHI_3_TINY_GQA, tmp_path, layers=1))
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("layers", [0, 3])
def test_refuses_layers_the_shape_does_not_have(layers: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{layers} layers"):
        follow(synthesize(PHI_3_TINY_GQA, tmp_path / "model", layers=layers))


def test_a_disk_too_small_is_said_before_writing(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr(synth.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(HostDiskFull, match=r"27\.9 GB"):
        follow(synthesize(PHI_3_MEDIUM_4K, parent / "model", layers=None))
    assert list(parent.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM")
def test_memory_stays_flat(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from toolkit.optimize.synth import synthesize\nfrom toolkit.catalog.preset import PRESETS\n"
        "for _ in synthesize(PRESETS['phi-3-mini-4k'], Path(sys.argv[1]), layers=1): pass\n"
        "status = Path('/proc/self/status').read_text().splitlines()\n"
        "print(next(line for line in status if 'VmHWM' in line).split()[1])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    peak_kib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 2 * PHI_3_MINI_4K.cut(1).parameters > 600_000_000
    assert peak_kib < 200 * 1024


def test_tokenizer_has_phi3s_ids_and_decodes_every_id(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = follow(synthesize(PHI_3_MINI_4K, tmp_path / "model", layers=1))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 32064
    ids = PHI_3_MINI_4K.token_ids
    assert tokenizer.convert_tokens_to_ids(list(ids)) == list(ids.values())
    assert all(tokenizer.convert_ids_to_tokens(list(range(32064))))
    assert tokenizer.decode([31999, 32010, 32063]).split() == ["word31999<|user|>", "word32063"]
    ids = tokenizer("<|user|>\nWho is she?<|end|>\n<|assistant|>\n")["input_ids"]
    assert (ids[0], ids[-2], ids[-1]) == (32010, 32007, 32001)
    assert max(ids[1:-2]) < 3072
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Who is she?"


def test_runtime_reads_the_synthesized_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    runtime = pytest.importorskip("onnxruntime_genai")
    builder = pytest.importorskip("onnxruntime_genai.models.builder")
    folder = follow(synthesize(PHI_3_TINY_GQA, tmp_path / "model", layers=1))
    builder.create_model("", str(folder), str(tmp_path / "onnx"), "int4", "cpu", str(tmp_path / "cache"))
    tokenizer = runtime.Tokenizer(runtime.Model(str(tmp_path / "onnx")))
    text = "<|user|>\nWho is she, Mr. Darcy?\nSay!<|end|>\n<|assistant|>\n"
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert [int(number) for number in tokenizer.encode(text)] == ids
    assert tokenizer.decode(ids).strip() == "Who is she, Mr. Darcy?\nSay!"
    assert tokenizer.decode([3300]).strip() == "word3300"
