"""toolkit.optimize.merge: adapters as peft saves them, merged with a base; others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.builds import follow
from tests.support.model_folders import change, copy_nano
from toolkit.catalog.model import open_model
from toolkit.errors import ConfigError
from toolkit.optimize.merge import merge

QKV = "model.layers.0.self_attn.qkv_proj"
HEAD = "lm_head.weight"
RANK, ALPHA, WIDTH, QKV_WIDTH = 4, 8, 256, 768
Tensors = dict[str, Any]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The reference model in float32, so that sums can be compared exactly."""
    import torch
    from safetensors.torch import load_file as load_torch, save_file as save_torch

    folder = copy_nano(tmp_path / "base")
    path = folder / "model.safetensors"
    save_torch({key: value.to(torch.float32) for key, value in load_torch(path).items()}, path)
    return folder


def lora(seed: int = 1) -> Tensors:
    random = numpy.random.default_rng(seed)
    return {
        f"base_model.model.{QKV}.lora_A.weight": random.normal(size=(RANK, WIDTH)).astype("f4"),
        f"base_model.model.{QKV}.lora_B.weight": random.normal(size=(QKV_WIDTH, RANK)).astype("f4"),
    }


def write(folder: Path, tensors: Tensors, **keys: object) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config: dict[str, object] = {"peft_type": "LORA", "lora_alpha": ALPHA, "r": RANK, "bias": "none", "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config | keys))
    return folder


def refusal(adapter: Path, base: Path | None, out: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        follow(merge(adapter, out, base=None if base is None else str(base)))
    assert not out.exists()
    assert caught.value.hint
    return caught.value


def test_only_the_adapted_matrix_changes_and_by_the_scaled_product(base: Path, tmp_path: Path) -> None:
    tensors = lora()
    adapter = write(tmp_path / "adapter", tensors, base_model_name_or_path=str(base))
    model = follow(merge(adapter, tmp_path / "merged"))
    assert (model.id, model.shape) == ("merged", open_model(base).shape)
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    down, up = tensors.values()
    expected = old[f"{QKV}.weight"] + numpy.float32(ALPHA / RANK) * (up @ down)
    assert numpy.array_equal(new.pop(f"{QKV}.weight"), expected)
    assert all(numpy.array_equal(values, old[key]) for key, values in new.items())


def test_scale_of_rank_stabilized_adapters(base: Path, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", lora())
    stable = write(tmp_path / "stable", lora(), use_rslora=True)
    old = load_file(base / "model.safetensors")[f"{QKV}.weight"]
    changes = []
    for adapter in (plain, stable):
        merged = follow(merge(adapter, tmp_path / f"{adapter.name}-merged", base=str(base)))
        changes.append(load_file(merged.folder / "model.safetensors")[f"{QKV}.weight"] - old)
    assert numpy.allclose(changes[1], changes[0] * RANK**0.5, atol=1e-4)


def test_bfloat16_is_rounded_to_nearest(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    base = copy_nano(tmp_path / "base")
    tensors = lora()
    follow(merge(write(tmp_path / "adapter", tensors), tmp_path / "merged", base=str(base)))
    old, new = (load_torch(folder / "model.safetensors")[f"{QKV}.weight"] for folder in (base, tmp_path / "merged"))
    down, up = (torch.from_numpy(values) for values in tensors.values())
    assert old.dtype == new.dtype
    wanted = (old.float() + ALPHA / RANK * (up @ down)).to(old.dtype)
    # Sums of four products in another order differ in the last bit of a float32, which a rounding may turn on.
    assert (new != wanted).float().mean() < 0.001
    assert torch.allclose(new.float(), wanted.float(), rtol=0.01)


def test_tensor_that_was_trained_whole_replaces_the_bases(base: Path, tmp_path: Path) -> None:
    head = load_file(base / "model.safetensors")[HEAD] * 2
    adapter = write(tmp_path / "adapter", lora() | {f"base_model.model.{HEAD}": head})
    follow(merge(adapter, tmp_path / "merged", base=str(base)))
    assert numpy.array_equal(load_file(tmp_path / "merged" / "model.safetensors")[HEAD], head)


def test_adapters_own_tokenizer_takes_the_place_of_the_bases(base: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter", lora())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (adapter / name).write_bytes((base / name).read_bytes())
    change(adapter / "tokenizer_config.json", chat_template="trained")
    follow(merge(adapter, tmp_path / "merged", base=str(base)))
    assert json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())["chat_template"] == "trained"
    assert not (tmp_path / "merged" / "chat_template.jinja").exists()
    assert (tmp_path / "merged" / "generation_config.json").is_file()


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"alpha_pattern": {"qkv_proj": 32}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ],
)
def test_other_kinds_are_left_to_peft(base: Path, tmp_path: Path, keys: dict[str, object], what: str) -> None:
    adapter = write(tmp_path / "adapter", lora(), **keys)
    error = refusal(adapter, base, tmp_path / "merged")
    assert error.message == f"{adapter}: an adapter that isn't plain LoRA: {what}"
    assert error.hint is not None and "merge_and_unload()" in error.hint


def test_tensors_of_another_kind_are_refused(base: Path, tmp_path: Path) -> None:
    magnitude = {f"base_model.model.{QKV}.lora_magnitude_vector": numpy.ones(QKV_WIDTH, "f4")}
    error = refusal(write(tmp_path / "adapter", lora() | magnitude), base, tmp_path / "merged")
    assert (
        "isn't plain LoRA: tensor base_model.model.model.layers.0.self_attn.qkv_proj.lora_magnitude_vec"
        in error.message
    )


def test_half_a_pair_is_refused(base: Path, tmp_path: Path) -> None:
    tensors = lora()
    tensors.popitem()
    assert "no matching lora_B.weight" in refusal(write(tmp_path / "a", tensors), base, tmp_path / "merged").message


def test_adapter_of_another_architecture(base: Path, tmp_path: Path) -> None:
    tensors = {key.replace("qkv_proj", "q_proj"): value for key, value in lora().items()}
    adapter = write(tmp_path / "adapter", tensors)
    error = refusal(adapter, base, tmp_path / "merged")
    assert error.message == (
        f"{adapter}: not an adapter for base: it changes model.layers.0.self_attn.q_proj.weight, "
        "which that model hasn't"
    )
    assert error.hint == "name the model that it was trained on: --base MODEL"


def test_adapter_of_another_size(base: Path, tmp_path: Path) -> None:
    tensors = {key: numpy.ones((RANK, 512) if "_A" in key else (1536, RANK), "f4") for key in lora()}
    message = refusal(write(tmp_path / "adapter", tensors), base, tmp_path / "merged").message
    assert message.endswith(f"{QKV}.weight is 1536 × 512 there and 768 × 256 in the model")


def test_base_that_nobody_names(tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter", lora())
    error = refusal(adapter, None, tmp_path / "merged")
    assert (error.message, error.hint) == (f"{adapter}: names no base model", "name it: --base MODEL")


def test_pickled_weights_are_never_read(base: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter", lora())
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    error = refusal(adapter, base, tmp_path / "merged")
    assert error.message == f"{adapter}/adapter_model.safetensors: missing"
    assert error.hint == "save it again with safe_serialization=True"


def test_folder_that_is_no_adapter(base: Path, tmp_path: Path) -> None:
    assert refusal(base, base, tmp_path / "merged").message == f"{base}: not an adapter: no adapter_config.json"


def test_what_is_there_is_not_replaced(base: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="already exists and isn't an empty folder"):
        follow(merge(write(tmp_path / "adapter", lora()), tmp_path / "merged", base=str(base)))
    assert (tmp_path / "merged" / "notes").read_text() == "mine"
