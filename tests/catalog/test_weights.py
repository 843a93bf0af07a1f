"""toolkit.catalog.weights: the files that are a model's weights, and the tensors in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.model_folders import change, copy_nano, shard, tensors_of, write_weights
from toolkit.catalog.model import model_files, open_model
from toolkit.catalog.weights import INDEX, SINGLE
from toolkit.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_nano(tmp_path / "nano")


def refusal(folder: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        open_model(folder)
    return caught.value


def test_stray_file_beside_shards_is_refused_by_name(folder: Path) -> None:
    """Transformers reads the single file and never looks at the index, whose files are hashed."""
    stray = (folder / SINGLE).read_bytes()
    shard(folder)
    assert open_model(folder).shape.layers == 4
    (folder / SINGLE).write_bytes(stray)
    error = refusal(folder)
    assert error.message == (
        f"{folder}: two sets of weights: model.safetensors, and the 2 files that model.safetensors.index.json lists"
    )
    assert error.hint == (
        "transformers would read the first and nothing else: move away the set that isn't this model's"
    )


def test_a_link_to_nothing_is_a_stray_file_too(folder: Path) -> None:
    shard(folder)
    (folder / SINGLE).symlink_to("gone")
    assert "two sets of weights" in refusal(folder).message


def test_index_that_names_the_single_file_among_others(folder: Path) -> None:
    names = shard(folder)
    (folder / names[0]).rename(folder / SINGLE)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {key: SINGLE if name == names[0] else name for key, name in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    assert "two sets of weights" in refusal(folder).message


def test_index_of_the_single_file_alone_is_no_contradiction(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors_of(folder), SINGLE)}))
    assert {path.name for path in model_files(open_model(folder))} >= {SINGLE, INDEX}


def test_adapter_beside_whole_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert refusal(folder).message == f"{folder}: an adapter beside whole weights: adapter_config.json"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.safetensors", "original.gguf", "tf_model.h5"])
def test_files_that_nothing_looks_at_are_no_part_of_the_model(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"weights")
    assert folder / name not in model_files(open_model(folder))


def test_tensor_that_is_missing_is_named(folder: Path) -> None:
    """Transformers fills it with random numbers."""
    tensors = tensors_of(folder)
    del tensors["lm_head.weight"]
    write_weights(folder / SINGLE, tensors)
    error = refusal(folder)
    assert error.message == (
        f"{folder}: the weights aren't those of the model that config.json describes\n  lm_head.weight: missing"
    )
    assert error.hint == "take config.json and the weights from the same place"


def test_fewer_layers_in_the_configuration_than_in_the_weights(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=3)
    lines = refusal(folder).message.splitlines()
    assert lines[1] == "  model.layers.3.input_layernorm.weight: no tensor of it"
    assert lines[-1] == "  and 2 more"


def test_other_heads_in_the_configuration_than_in_the_weights(folder: Path) -> None:
    change(folder / "config.json", num_key_value_heads=2)
    assert "model.layers.0.self_attn.qkv_proj.weight: 768 × 256 instead of 384 × 256" in refusal(folder).message


def test_tied_head_may_be_stored_or_not(folder: Path) -> None:
    change(folder / "config.json", tie_word_embeddings=True)
    assert open_model(folder).shape.tied_embeddings
    write_weights(folder / SINGLE, tensors_of(folder))
    assert open_model(folder).shape.tied_embeddings


def test_tables_of_positions_in_old_checkpoints_are_passed_over(folder: Path) -> None:
    tensors = tensors_of(folder) | {"model.layers.0.self_attn.rotary_emb.inv_freq": (16,)}
    write_weights(folder / SINGLE, tensors)
    assert open_model(folder).shape.layers == 4


@pytest.mark.parametrize(
    ("prefix", "hint"),
    [
        ("_orig_mod.", "a trainer wrapped the model"),
        ("module.", "a trainer wrapped the model"),
        ("base_model.model.lora_A.", "a trainer wrapped the model"),
        ("x.lora_A.", "these are an adapter's"),
    ],
)
def test_weights_that_something_wrapped(folder: Path, prefix: str, hint: str) -> None:
    write_weights(folder / SINGLE, {prefix + key: shape for key, shape in tensors_of(folder).items()})
    error = refusal(folder)
    assert error.hint is not None
    assert error.hint.startswith("these are an adapter's" if ".lora_" in prefix else hint)


def test_quantized_weights_without_a_word_in_the_configuration(folder: Path) -> None:
    write_weights(folder / SINGLE, tensors_of(folder), dtype="I8")
    assert refusal(folder).message == f"{folder}: weights of type I8"


def test_tensor_that_stands_in_two_shards(folder: Path) -> None:
    names = shard(folder)
    write_weights(folder / names[1], tensors_of(folder))
    assert f"{names[1]}: model.embed_tokens.weight is also in {names[0]}" in refusal(folder).message


@pytest.mark.parametrize("name", ["../model.safetensors", "a/b.safetensors", "..", "", "a\x00b", "C:x"])
def test_index_that_leads_elsewhere(folder: Path, name: str) -> None:
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert refusal(folder).message.startswith(f"{folder / INDEX}: ")
