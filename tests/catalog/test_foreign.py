"""toolkit.catalog.foreign: folders and files that people give as models, and the words about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.model_folders import copy_nano, shard
from toolkit.catalog.model import known_shape, open_model
from toolkit.catalog.weights import INDEX, SINGLE
from toolkit.errors import ConfigError

ORIGINAL = "give the original model: its hub id, or a folder in Hugging Face layout with *.safetensors"


def refusal(path: Path) -> tuple[str, str | None]:
    """The words about a path, with `M` for it; a plan says the same of one without a config.json."""
    with pytest.raises(ConfigError) as caught:
        open_model(path)
    assert caught.value.exit_code == 3
    if not (path / "config.json").is_file() and path.exists():
        with pytest.raises(ConfigError) as planned:
            known_shape(str(path))
        assert (planned.value.message, planned.value.hint) == (caught.value.message, caught.value.hint)
    hint = caught.value.hint
    return caught.value.message.replace(str(path), "M"), hint and hint.replace(str(path), "M")


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def adapter(folder: Path) -> None:
    put(folder, "adapter_model.safetensors")
    base = {"base_model_name_or_path": "microsoft/Phi-3-mini-4k-instruct", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(base))


def files(*names: str) -> Callable[[Path], None]:
    return lambda folder: put(folder, *names)


WITHOUT_CONFIG: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "an adapter": (
        adapter,
        "M: an adapter for 'microsoft/Phi-3-mini-4k-instruct', not a whole model (adapter_config.json)",
        "merge it with its base first: edgephi models merge M -o NEW_FOLDER",
    ),
    "an adapter without a base": (
        files("adapter_config.json"),
        "M: an adapter, not a whole model (adapter_config.json)",
        "merge it with its base first: edgephi models merge M --base MODEL -o NEW_FOLDER",
    ),
    "GGUF": (files("phi-3.Q4_K_M.gguf"), "M: phi-3.Q4_K_M.gguf is GGUF, for llama.cpp: quantized already", ORIGINAL),
    "ONNX": (files("model.onnx", "model.onnx.data"), "M: model.onnx is ONNX: exported already", ORIGINAL),
    "a bundle": (
        files("genai_config.json", "manifest.json", "model.onnx"),
        "M: a bundle: it is built already",
        "bring it to a target: edgephi deploy M TARGET",
    ),
    "a model for the runtime": (
        files("genai_config.json", "model.onnx"),
        "M: an ONNX model for onnxruntime-genai: exported already",
        ORIGINAL,
    ),
    "Meta's layout": (
        files("consolidated.00.pth"),
        "M: consolidated.00.pth is PyTorch .pth weights, no safetensors",
        ORIGINAL,
    ),
    "a trainer's output": (
        files("checkpoint-500/config.json", "checkpoint-1500/config.json", "trainer_log.jsonl"),
        "M: a trainer's output: 2 checkpoints",
        "give one of them, such as the newest: M/checkpoint-1500",
    ),
    "a level too high": (
        files("phi/config.json", "README.md"),
        "M: not a model folder, but a folder around one",
        "give M/phi",
    ),
    "the hub's cache": (
        files("snapshots/0123/config.json", "refs/main", "blobs/x"),
        "M: the hub's cache of a model, not the model",
        "give its snapshot: M/snapshots/0123",
    ),
    "Ollama's store": (
        files("blobs/sha256-0", "manifests/registry.ollama.ai/x"),
        "M: Ollama's store, whose models are GGUF, for llama.cpp",
        ORIGINAL,
    ),
    "weights alone": (
        files("model.safetensors"),
        "M: not a model folder: weights, but no config.json",
        "copy config.json and the tokenizer files from the model's page into the folder",
    ),
    "nothing": (
        files(),
        "M: not a model folder: no config.json",
        "a model folder holds config.json, tokenizer files and *.safetensors",
    ),
}


@pytest.mark.parametrize("what", WITHOUT_CONFIG)
def test_folder_without_a_configuration(tmp_path: Path, what: str) -> None:
    make, message, hint = WITHOUT_CONFIG[what]
    folder = tmp_path / "m"
    folder.mkdir()
    make(folder)
    assert refusal(folder) == (message, hint)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("phi.gguf", "M: GGUF, for llama.cpp: quantized already", ORIGINAL),
        ("phi.onnx", "M: ONNX: exported already", ORIGINAL),
        ("notes.txt", "M: not a folder", "a model is a folder in Hugging Face layout"),
    ],
)
def test_file_in_the_place_of_a_folder(tmp_path: Path, name: str, message: str, hint: str) -> None:
    put(tmp_path, name)
    assert refusal(tmp_path / name) == (message, hint)


def test_one_of_a_models_files(tmp_path: Path) -> None:
    folder = copy_nano(tmp_path / "nano")
    assert refusal(folder / SINGLE) == ("M: not a folder", f"give the folder that it lies in: {folder}")


def test_level_too_deep(tmp_path: Path) -> None:
    folder = copy_nano(tmp_path / "nano")
    put(folder, "runs/events.out")
    message = "M: not a model folder, but a part of one"
    assert refusal(folder / "runs") == (message, f"give the folder above: {folder}")


BESIDE_CONFIG: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "shards without an index": (
        files("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"),
        "M: no weights: 2 of 3 parts (not 00002), and no model.safetensors.index.json that says what is in which",
        "copy it from the model's page; an interrupted download goes on where it stopped",
    ),
    "GGUF": (
        files("phi.gguf"),
        "M: no weights: phi.gguf is GGUF, for llama.cpp: quantized already",
        ORIGINAL,
    ),
    "TensorFlow's": (
        files("tf_model.h5"),
        "M: no weights: tf_model.h5 is TensorFlow weights, no safetensors",
        ORIGINAL,
    ),
    "Flax's": (
        files("flax_model.msgpack"),
        "M: no weights: flax_model.msgpack is Flax weights, no safetensors",
        ORIGINAL,
    ),
    "an adapter": (
        adapter,
        "M: no weights: an adapter for 'microsoft/Phi-3-mini-4k-instruct', not a whole model (adapter_config.json)",
        "merge it with its base first: edgephi models merge M -o NEW_FOLDER",
    ),
    "pieces of DeepSpeed": (
        files("global_step100/mp_rank_00_model_states.pt", "zero_to_fp32.py", "latest"),
        "M: no weights: a checkpoint of DeepSpeed, in pieces",
        "let its own script join them: python M/zero_to_fp32.py M NEW_FOLDER --safe_serialization",
    ),
    "pieces of FSDP": (
        files("pytorch_model_fsdp_0/__0_0.distcp"),
        "M: no weights: a checkpoint of FSDP, in pieces",
        "let accelerate join them: accelerate merge-weights M/pytorch_model_fsdp_0 NEW_FOLDER",
    ),
    "another name": (
        files("consolidated.safetensors"),
        "M: no weights: consolidated.safetensors has another name than model.safetensors",
        "rename it, if it holds the whole model; else get the model again",
    ),
    "a trainer's output": (
        files("checkpoint-2/config.json"),
        "M: no weights: a trainer's output: 1 checkpoint",
        "give one of them, such as the newest: M/checkpoint-2",
    ),
}


@pytest.mark.parametrize("what", BESIDE_CONFIG)
def test_folder_without_weights_that_can_be_read(tmp_path: Path, what: str) -> None:
    make, message, hint = BESIDE_CONFIG[what]
    folder = copy_nano(tmp_path / "nano")
    (folder / SINGLE).unlink()
    make(folder)
    assert refusal(folder) == (message, hint)


def test_index_without_shards(tmp_path: Path) -> None:
    folder = copy_nano(tmp_path / "nano")
    names = shard(folder)
    for name in names:
        (folder / name).unlink()
    message, _ = refusal(folder)
    assert message.splitlines() == ["M: incomplete weights", *(f"  {name}: missing" for name in names)]
    assert (folder / INDEX).is_file()


def test_tokenizer_that_a_trainer_put_beside_its_checkpoints(tmp_path: Path) -> None:
    output = copy_nano(tmp_path / "output")
    checkpoint = copy_nano(output / "checkpoint-10")
    (checkpoint / "tokenizer.json").unlink()
    message, hint = refusal(checkpoint)
    assert message == "M: missing tokenizer files: tokenizer.json"
    assert hint == f"the trainer put them beside it: cp {output}/*token* M"
