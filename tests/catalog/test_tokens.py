"""toolkit.catalog.tokens: ids and tokens that several files of a model name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.model_folders import change, copy_nano
from toolkit.catalog.model import open_model
from toolkit.catalog.tokens import read_generation, read_tokens, stop_ids
from toolkit.errors import ConfigError

VOCAB = 3072


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_nano(tmp_path / "nano")


def refusal(folder: Path) -> str:
    """The words about a model whose files contradict each other, before anything is built."""
    with pytest.raises(ConfigError) as caught:
        open_model(folder)
        read_tokens(folder, VOCAB)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("key", ["eos_token_id", "bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [VOCAB, -1, True, "2", 1.0, 10**39])
def test_id_outside_the_vocabulary(folder: Path, name: str, key: str, value: object) -> None:
    change(folder / name, **{key: value})
    assert refusal(folder) == f"{folder}/{name}: {key}: {str(value)[:40]!r} is no token of a vocabulary of 3072"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_one_of_several_ends_outside_the_vocabulary(folder: Path, name: str) -> None:
    change(folder / name, eos_token_id=[2, 32000])
    assert f"{folder}/{name}: eos_token_id: '32000' is no token" in refusal(folder)


@pytest.mark.parametrize("value", [[], list(range(65))])
def test_senseless_number_of_ends(folder: Path, value: list[int]) -> None:
    change(folder / "generation_config.json", eos_token_id=value)
    assert f"eos_token_id: a list of {len(value)} ids" in refusal(folder)


def test_no_id_is_no_mistake(folder: Path) -> None:
    change(folder / "config.json", pad_token_id=None, bos_token_id=None)
    (folder / "generation_config.json").unlink()
    assert open_model(folder).shape.vocab == VOCAB
    assert read_generation(folder) == {}


@pytest.mark.parametrize(
    ("config", "generation", "stops"),
    [
        ({"eos_token_id": 2}, {}, [2]),
        ({"eos_token_id": 2}, {"eos_token_id": None}, [2]),
        ({"eos_token_id": 2}, {"eos_token_id": [3, 4, 3]}, [3, 4]),
        ({"eos_token_id": [2, 3]}, {}, [2, 3]),
        ({"eos_token_id": 2}, {"eos_token_id": 0}, [0]),
        ({}, {}, []),
    ],
)
def test_the_generations_ends_outrank_the_models(
    config: dict[str, object], generation: dict[str, object], stops: list[int]
) -> None:
    assert stop_ids(config, generation) == stops


def test_tokens_of_the_reference_model(folder: Path) -> None:
    tokens = read_tokens(folder, VOCAB)
    assert tokens.eos_id == tokens.added["<|endoftext|>"]
    assert tokens.template is not None and "<|end|>" in tokens.template


def edit(path: Path, *keys: str, to: object) -> None:
    table = json.loads(path.read_text())
    place = table
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    path.write_text(json.dumps(table))


def test_token_that_was_added_without_weights_for_it(folder: Path) -> None:
    """A text that has it would end the runtime's process with an index out of range."""
    path = folder / "tokenizer.json"
    added = json.loads(path.read_text())["added_tokens"]
    edit(path, "added_tokens", to=[*added, added[-1] | {"id": VOCAB, "content": "<|tool|>"}])
    assert refusal(folder) == (f"{path}: token '<|tool|>' has id 3072; the model has 3072 (config.json: vocab_size)")


def test_word_outside_the_vocabulary(folder: Path) -> None:
    edit(folder / "tokenizer.json", "model", "vocab", "word", to=3100)
    assert "token 'word' has id 3100; the model has 3072" in refusal(folder)


def test_settings_that_contradict_the_tokenizer(folder: Path) -> None:
    tokens = read_tokens(folder, VOCAB)
    end, user = tokens.added["<|end|>"], tokens.added["<|user|>"]
    settings = folder / "tokenizer_config.json"
    edit(settings, "added_tokens_decoder", to={str(user): {"content": "<|end|>"}})
    assert refusal(folder) == f"{settings}: token '<|end|>' has id {user}, and {end} in tokenizer.json"


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"added_tokens": 5}', '{"added_tokens": [5]}', "{}", "\x00"])
def test_tokenizer_that_is_none(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    assert refusal(folder).startswith(f"{folder}/tokenizer.json: ")


def test_template_of_the_file_outranks_the_settings(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", "chat_template", to="other")
    assert read_tokens(folder, VOCAB).template == (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    assert read_tokens(folder, VOCAB).template == "other"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    edit(folder / "tokenizer_config.json", "chat_template", to=named)
    assert read_tokens(folder, VOCAB).template == "plain"


def test_named_token_with_its_properties(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", "eos_token", to={"content": "<|end|>", "lstrip": False})
    tokens = read_tokens(folder, VOCAB)
    assert tokens.eos_id == tokens.added["<|end|>"]
