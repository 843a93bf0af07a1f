"""toolkit.optimize.model_view: the folder that Olive sees, and what the files of a model say against each other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import follow
from tests.support.model_folders import change, copy_nano, drop
from toolkit.catalog.model import open_model
from toolkit.errors import BuildError, ConfigError
from toolkit.events import Event, Warning_
from toolkit.optimize import model_view
from toolkit.optimize.model_view import ModelView, view_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_nano(tmp_path / "nano")


def view(folder: Path, events: list[Event] | None = None, *, trusted: bool = False) -> ModelView:
    return follow(view_model(open_model(folder, trust_remote_code=trusted)), events)


def ids(folder: Path) -> dict[str, int]:
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return {token["content"]: token["id"] for token in added}


def warnings(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Warning_)]


def test_listed_files_and_no_other(folder: Path, tmp_path: Path) -> None:
    for stray in (
        "pytorch_model.bin",
        "modeling_phi3.py",
        "README.md",
        "vocab.json",
        "model-00001-of-00002.safetensors",
    ):
        (folder / stray).write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    put = view(folder).put(tmp_path / "view")
    assert {path.name for path in put.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (put / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_large_files_are_linked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_view, "_COPIED_BYTES", 1000)
    put = view(folder).put(tmp_path / "view")
    assert (put / "model.safetensors").is_symlink()
    assert (put / "model.safetensors").samefile(folder / "model.safetensors")


def test_hard_links_and_then_copies_where_links_are_not_allowed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows gives links to administrators alone, and no file system links to another."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(model_view, "_COPIED_BYTES", 1000)
    monkeypatch.setattr(os, "symlink", refuse)
    hard = view(folder).put(tmp_path / "hard") / "model.safetensors"
    assert hard.samefile(folder / "model.safetensors") and not hard.is_symlink()
    monkeypatch.setattr(os, "link", refuse)
    copy = view(folder).put(tmp_path / "copy") / "model.safetensors"
    assert not copy.samefile(folder / "model.safetensors")
    assert copy.read_bytes() == hard.read_bytes()


def test_links_into_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    assert (view(folder).put(tmp_path / "view") / "model.safetensors").read_bytes() == blob.read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_file_that_changes_after_it_was_listed(folder: Path, tmp_path: Path, name: str) -> None:
    listed = view(folder)
    listed.refuse_changed()
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(BuildError) as caught:
        listed.put(tmp_path / "view")
    assert caught.value.message == f"{folder}: changed while it was being built: {name}"
    assert caught.value.exit_code == 5


def test_file_that_goes_or_comes_after_it_was_listed(folder: Path) -> None:
    listed = view(folder)
    (folder / "generation_config.json").rename(folder / "added_tokens.json")
    with pytest.raises(
        BuildError, match=r"changed while it was being built: generation_config\.json, added_tokens\.json"
    ):
        listed.refuse_changed()


def test_configuration_that_tools_read_differently_is_written_anew(folder: Path, tmp_path: Path) -> None:
    plain = view(folder)
    assert plain.edits == {}
    change(folder / "config.json", auto_map=None, rope_theta=10000.0)
    edited = view(folder)
    put = edited.put(tmp_path / "view")
    assert "auto_map" not in json.loads((put / "config.json").read_text())
    assert "auto_map" in json.loads((folder / "config.json").read_text()), "the model itself stays as it is"
    assert edited.key() != plain.key()


def test_turns_end_that_no_configuration_names(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    end, endoftext = (ids(folder)[token] for token in ("<|end|>", "<|endoftext|>"))
    change(folder / "config.json", eos_token_id=endoftext)
    events: list[Event] = []
    assert view(folder, events).stops == (endoftext, end)
    assert warnings(events) == [
        f"nano: '<|end|>' ({end}) ends an answer too: it closes an assistant's turn in its chat template"
    ]


def test_ends_that_are_named_are_kept_without_a_word(folder: Path) -> None:
    end, endoftext, user = (ids(folder)[token] for token in ("<|end|>", "<|endoftext|>", "<|user|>"))
    change(folder / "generation_config.json", eos_token_id=[user, end, endoftext])
    events: list[Event] = []
    assert view(folder, events).stops == (user, end, endoftext)
    assert warnings(events) == []


def test_tokenizers_own_end_that_no_configuration_names(folder: Path) -> None:
    end, endoftext = (ids(folder)[token] for token in ("<|end|>", "<|endoftext|>"))
    change(folder / "generation_config.json", eos_token_id=end)
    events: list[Event] = []
    assert view(folder, events).stops == (end, endoftext)
    assert warnings(events) == [
        f"nano: '<|endoftext|>' ({endoftext}) ends an answer too: it is the tokenizer's eos_token"
    ]


def test_template_without_an_end_is_said_aloud(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    change(folder / "generation_config.json", eos_token_id=ids(folder)["<|endoftext|>"])
    events: list[Event] = []
    view(folder, events)
    assert warnings(events) == [
        "nano: its chat template closes an assistant's turn with no special token; only '<|endoftext|>' ends an "
        "answer: a chat may go on past its turn"
    ]


def test_model_that_nothing_stops_is_refused(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    (folder / "chat_template.jinja").unlink()
    (folder / "special_tokens_map.json").unlink()
    drop(folder / "tokenizer_config.json", "eos_token", "chat_template")
    change(folder / "config.json", eos_token_id=None)
    with pytest.raises(ConfigError) as caught:
        view(folder)
    assert caught.value.message == (
        f"{folder}: no token ends an answer: neither config.json nor generation_config.json has an eos_token_id"
    )


@pytest.mark.parametrize(("stops", "written"), [((2,), 2), ((2, 5), [2, 5])])
def test_runtimes_configuration_gets_the_ends(folder: Path, tmp_path: Path, stops: Any, written: object) -> None:
    path = tmp_path / "genai_config.json"
    path.write_text(json.dumps({"model": {"eos_token_id": None, "pad_token_id": None, "type": "phi3"}}))
    ModelView(open_model(folder), {}, stops, {}).finish(tmp_path)
    assert json.loads(path.read_text())["model"] == {"eos_token_id": written, "pad_token_id": 2, "type": "phi3"}


@pytest.fixture
def small(folder: Path) -> Path:
    """A folder that claims to be a Phi-3-small, whose tokenizer is code too."""
    code = {"AutoModelForCausalLM": "modeling.Model", "AutoTokenizer": "tokenization.Tokenizer"}
    own: dict[str, object] = {"architectures": ["Phi3SmallForCausalLM"], "model_type": "phi3small", "auto_map": code}
    change(folder / "config.json", **own)
    change(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map=code)
    (folder / "modeling.py").write_text("raise SystemExit('remote code ran')")
    return folder


def test_only_what_names_the_tokenizers_code_is_rewritten(small: Path, tmp_path: Path) -> None:
    put = view(small, trusted=True).put(tmp_path / "view")
    config = json.loads((put / "config.json").read_bytes())
    assert config["auto_map"] == {"AutoModelForCausalLM": "modeling.Model"}
    tokenizer = json.loads((put / "tokenizer_config.json").read_bytes())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in tokenizer
    assert (put / "modeling.py").read_bytes() == (small / "modeling.py").read_bytes()
    assert "AutoTokenizer" in (small / "config.json").read_text(), "the model itself stays as it is"


@pytest.mark.parametrize("mapped", [{}, {"auto_map": None}])
def test_a_tokenizer_without_code_keeps_its_class(small: Path, tmp_path: Path, mapped: dict[str, object]) -> None:
    drop(small / "tokenizer_config.json", "auto_map")
    change(small / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", **mapped)
    put = view(small, trusted=True).put(tmp_path / "view")
    table = json.loads((put / "tokenizer_config.json").read_bytes())
    assert table["tokenizer_class"] == "LlamaTokenizer" and "auto_map" not in table
