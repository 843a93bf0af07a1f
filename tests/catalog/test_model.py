"""toolkit.catalog.model: the folders that are a usable Phi-3, and the errors about others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.builds import follow
from toolkit.catalog import ModelShape
from toolkit.catalog.model import hash_model, model_files, open_model, shipped_model
from toolkit.catalog.preset import PRESETS
from toolkit.catalog.shape import parse_shape
from toolkit.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the reference model that a test may break."""
    model = shipped_model("phi3-nano")
    assert model is not None
    return Path(shutil.copytree(model.folder, tmp_path / "nano"))


def change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def refusal(folder: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        open_model(folder)
    return caught.value


def test_reference_model_has_the_shape_it_was_trained_with() -> None:
    model = shipped_model("phi3-nano")
    assert model is not None
    assert (model.id, model.name, model.revision) == ("phi3-nano", "phi3-nano", None)
    assert model.shape == ModelShape(
        architecture="Phi3ForCausalLM",
        layers=4,
        hidden=256,
        heads=8,
        kv_heads=8,
        head_dim=32,
        intermediate=640,
        vocab=3072,
        max_context=1024,
        original_context=1024,
        rope="default",
        rotary_dim=32,
        tied_embeddings=False,
    )


def test_no_other_name_is_shipped() -> None:
    assert shipped_model("phi3-mega") is None


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_agree_with_the_published_counts(name: str) -> None:
    preset = PRESETS[name]
    assert parse_shape(preset.config(), name).parameters == preset.parameters


def test_shape_of_transformers_5_config_is_read_like_that_of_4() -> None:
    old = PRESETS["phi-3-tiny-longrope"].config()
    scaling = old["rope_scaling"]
    assert isinstance(scaling, dict)
    new = {key: value for key, value in old.items() if key != "rope_scaling"}
    factors = {key: scaling[key] for key in ("short_factor", "long_factor")}
    new["rope_parameters"] = {"rope_type": scaling["type"], "rope_theta": 10000.0, **factors}
    assert parse_shape(new, "new") == parse_shape(old, "old")
    assert parse_shape(new, "new").rope == "longrope"


def test_tied_head_is_counted_once() -> None:
    config = PRESETS["phi-3-tiny-gqa"].config()
    untied, tied = (parse_shape(config | {"tie_word_embeddings": value}, "x").parameters for value in (False, True))
    assert untied - tied == config["vocab_size"] * config["hidden_size"]  # type: ignore[operator]


def test_rotary_part_of_a_head() -> None:
    config = PRESETS["phi-4-mini"].config()
    assert parse_shape(config, "x").rotary_dim == 96
    assert parse_shape(PRESETS["phi-3-medium-128k"].config(), "x").rotary_dim == 128
    # Transformers 5 writes partial_rotary_factor among the parameters of the positions.
    new = {key: value for key, value in config.items() if key not in ("partial_rotary_factor", "rope_scaling")}
    scaling = config["rope_scaling"]
    assert isinstance(scaling, dict)
    new["rope_parameters"] = scaling | {"rope_type": "longrope", "partial_rotary_factor": 0.75}
    assert parse_shape(new, "x").rotary_dim == 96


def test_phi3_small_keeps_its_width_under_a_name_of_its_own() -> None:
    shape = parse_shape(PRESETS["phi-3-small-8k"].config(), "x")
    assert (shape.intermediate, shape.vocab, shape.rotary_dim) == (14336, 100352, 128)


def test_no_quantization_named_is_no_quantization() -> None:
    assert parse_shape(PRESETS["phi-3-tiny-gqa"].config() | {"quantization_config": None}, "x").layers == 2


def test_local_model_is_named_after_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert open_model(Path()).id == "nano"


def test_no_folder(tmp_path: Path) -> None:
    assert "not a folder" in refusal(tmp_path / "absent").message


def test_folder_without_a_model(tmp_path: Path) -> None:
    assert refusal(tmp_path).message == f"{tmp_path}: not a model folder: no config.json"


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_config_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert "JSON" in refusal(folder).message


def test_other_architecture(folder: Path) -> None:
    change(folder / "config.json", architectures=["LlamaForCausalLM"])
    error = refusal(folder)
    assert "architecture 'LlamaForCausalLM' isn't supported" in error.message
    assert error.hint is not None and "Phi3ForCausalLM" in error.hint


@pytest.fixture
def small(folder: Path) -> Path:
    """A folder that claims to be a Phi-3-small; its code ends the process if it runs."""
    mapped = {"AutoModelForCausalLM": "modeling_phi3_small.Phi3SmallForCausalLM"}
    own = {"architectures": ["Phi3SmallForCausalLM"], "model_type": "phi3small", "auto_map": mapped}
    change(folder / "config.json", **own)
    (folder / "modeling_phi3_small.py").write_text("raise SystemExit('remote code ran')")
    return folder


def test_remote_code_is_refused_unless_it_is_trusted(small: Path) -> None:
    error = refusal(small)
    assert error.message == (
        f"{small}: architecture 'Phi3SmallForCausalLM' needs remote code: Python files that come with the model and "
        "run on this machine with your rights while it is built"
    )
    assert error.hint is not None and "--trust-remote-code" in error.hint
    assert open_model(small, trust_remote_code=True).remote_code


def test_trust_goes_no_further_than_need(folder: Path) -> None:
    (folder / "modeling_phi3.py").write_text("raise SystemExit('remote code ran')")
    model = open_model(folder, trust_remote_code=True)
    assert not model.remote_code
    assert not [path for path in model_files(model) if path.suffix == ".py"]


def test_trusted_code_is_part_of_the_model(small: Path) -> None:
    model = open_model(small, trust_remote_code=True)
    assert small / "modeling_phi3_small.py" in model_files(model)
    first = follow(hash_model(model))
    (small / "modeling_phi3_small.py").write_text("raise SystemExit('other code ran')")
    assert follow(hash_model(model)) != first


@pytest.mark.parametrize(
    ("mapped", "message"),
    [
        (None, "config.json names no model code"),
        ({"AutoModelForCausalLM": "modeling_gone.Phi3SmallForCausalLM"}, "missing model code: modeling_gone.py"),
        ({"AutoModelForCausalLM": "org/other--modeling_phi3_small.X"}, "missing model code"),
    ],
)
def test_trusted_code_has_to_lie_in_the_folder(small: Path, mapped: object, message: str) -> None:
    change(small / "config.json", auto_map=mapped)
    with pytest.raises(ConfigError, match=message):
        open_model(small, trust_remote_code=True)


def test_quantized_model(folder: Path) -> None:
    change(folder / "config.json", quantization_config={"quant_method": "gptq"})
    assert "already quantized (gptq)" in refusal(folder).message


@pytest.mark.parametrize("value", [None, 0, -1, "many"])
def test_senseless_number_is_named(folder: Path, value: object) -> None:
    change(folder / "config.json", num_hidden_layers=value)
    assert "layers" in refusal(folder).message


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_tokenizer_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal(folder).message.endswith(f"missing tokenizer files: {name}")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder).message


def test_pytorch_weights_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = refusal(folder)
    assert "only PyTorch .bin weights" in error.message
    assert error.hint is not None and "save_pretrained" in error.hint


@pytest.mark.parametrize("kept", [0, 5, 8, 100, 9_000_000])
def test_partial_weights_are_named(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(folder).message
    assert "incomplete weights" in message
    assert "model.safetensors: " in message


def test_lfs_pointer_is_recognized(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    assert "Git LFS pointer" in refusal(folder).message


def test_every_missing_shard_is_named(folder: Path) -> None:
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    (folder / "model.safetensors").rename(folder / "model-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    lines = refusal(folder).message.splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "model-1.safetensors: missing",
        "model-3.safetensors: missing",
    ]


def test_shard_outside_the_folder_is_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    assert "outside the folder" in refusal(folder).message


def test_hash_follows_content_and_not_place(folder: Path, tmp_path: Path) -> None:
    first = follow(hash_model(open_model(folder)))
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert follow(hash_model(open_model(copy))) == first
    change(copy / "generation_config.json", temperature=0.5)
    assert follow(hash_model(open_model(copy))) != first


def test_file_that_is_no_part_of_the_model_is_not_hashed(folder: Path) -> None:
    first = follow(hash_model(open_model(folder)))
    (folder / "README.md").write_text("hello")
    assert follow(hash_model(open_model(folder))) == first


def test_large_files_are_hashed_once(folder: Path) -> None:
    model = open_model(folder)
    first, second = [], []
    digest = follow(hash_model(model), first)
    assert follow(hash_model(model), second) == digest
    assert first and not second
    total = sum(path.stat().st_size for path in model_files(model))
    assert first[-1].done == first[-1].total == total  # type: ignore[union-attr]


def test_changed_file_is_hashed_again(folder: Path) -> None:
    first = follow(hash_model(open_model(folder)))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert follow(hash_model(open_model(folder))) != first


def test_broken_memo_costs_only_time(folder: Path, tmp_path: Path) -> None:
    digest = follow(hash_model(open_model(folder)))
    (tmp_path / "cache" / "hashes.json").write_text("{")
    assert follow(hash_model(open_model(folder))) == digest
