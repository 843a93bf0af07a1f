"""toolkit.optimize.remote_code: a view of a model that doesn't name its tokenizer's code."""

from __future__ import annotations

import json
from pathlib import Path

from toolkit.optimize.remote_code import without_tokenizer_code


def write(path: Path, table: dict[str, object]) -> None:
    path.write_text(json.dumps(table), encoding="utf-8")


def test_only_what_names_the_tokenizers_code_is_rewritten(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    code = {"AutoModelForCausalLM": "modeling.Model", "AutoTokenizer": "tokenization.Tokenizer"}
    write(model / "config.json", {"hidden_size": 8, "auto_map": code})
    write(model / "tokenizer_config.json", {"tokenizer_class": "Own", "bos_token": "<s>", "auto_map": code})
    (model / "model.safetensors").write_bytes(b"weights")

    view = without_tokenizer_code(model, tmp_path / "work" / "view")

    config = json.loads((view / "config.json").read_bytes())
    assert config == {"hidden_size": 8, "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    tokenizer = json.loads((view / "tokenizer_config.json").read_bytes())
    assert tokenizer == {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    assert (view / "model.safetensors").samefile(model / "model.safetensors")
    assert "AutoTokenizer" in (model / "config.json").read_text(), "the model itself stays as it is"


def test_a_tokenizer_without_code_keeps_its_class(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    write(model / "config.json", {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}})
    write(model / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    view = without_tokenizer_code(model, tmp_path / "view")
    assert json.loads((view / "tokenizer_config.json").read_bytes()) == {"tokenizer_class": "LlamaTokenizer"}
