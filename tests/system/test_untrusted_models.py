"""Model folders of others, whatever stands in their files: an error in words, or a model that can be described."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tests.support.builds import follow
from tests.support.model_folders import copy_nano, header, shard, tensors_of
from tests.support.untrusted_inputs import AWKWARD_FILES, AWKWARD_RAW, held, raw
from toolkit.catalog import ModelShape
from toolkit.catalog.adapter import Adapter, read_adapter
from toolkit.catalog.model import SourceModel, known_shape, model_files, open_model
from toolkit.catalog.preset import PRESETS
from toolkit.catalog.shape import parse_shape, plain_config
from toolkit.catalog.weights import INDEX, SINGLE
from toolkit.errors import ToolkitError
from toolkit.optimize.chat_end import NoEnd
from toolkit.optimize.model_view import ModelView, view_model

pytestmark = pytest.mark.fuzz

NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
PARSED = (SourceModel, ToolkitError)


def config_of(name: str) -> dict[str, Any]:
    return PRESETS[name].config()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model; each example puts back what it changed."""
    return copy_nano(tmp_path_factory.mktemp("models") / "nano")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_nano(tmp_path_factory.mktemp("models") / "sharded")
    shard(folder)
    return folder


@pytest.fixture(autouse=True)
def no_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no example start a process for its template: test_chat_end holds the rendering against hostile ones."""

    def none(*_: object) -> str:
        raise NoEnd("not rendered")

    monkeypatch.setattr("toolkit.optimize.model_view.closing_token", none)


def with_file(folder: Path, name: str, content: bytes, read: Callable[[], Any]) -> Any:
    """The result of a reader while a file of the folder has another content."""
    path = folder / name
    before = path.read_bytes() if path.is_file() else None
    path.write_bytes(content)
    try:
        return held(read)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


@pytest.mark.parametrize("preset", ["phi-3-tiny", "phi-3-tiny-longrope", "phi-4-tiny", "phi-3-small-tiny"])
@given(data=st.data())
def test_configuration(preset: str, data: st.DataObject) -> None:
    """A configuration that is accepted has a shape, and written out for all tools it has the same."""
    content = data.draw(raw(config_of(preset)))
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        return
    if not isinstance(config, dict):
        return
    shape = held(lambda: parse_shape(config, "m"))
    if isinstance(shape, ModelShape):
        assert parse_shape(plain_config(config, "m"), "m") == shape


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_each_file_of_a_model(folder: Path, name: str, data: st.DataObject) -> None:
    """Whatever a file holds, opening and viewing the model ends in words or in a view that can be put to use."""
    document = None if name.endswith(".jinja") else json.loads((folder / name).read_bytes())
    content = data.draw(raw(document))

    def read() -> Any:
        return follow(view_model(open_model(folder)))

    view = with_file(folder, name, content, read)
    if isinstance(view, ModelView):
        assert view.stops and all(0 <= stop < view.model.shape.vocab for stop in view.stops)
        assert view.key()


@given(data=st.data())
def test_index(sharded: Path, data: st.DataObject) -> None:
    content = data.draw(raw(json.loads((sharded / INDEX).read_bytes())))
    model = with_file(sharded, INDEX, content, lambda: open_model(sharded))
    assert isinstance(model, PARSED)
    if isinstance(model, SourceModel):
        assert all(path.parent == sharded for path in model_files(model))


@given(data=st.data())
def test_header_of_weights(folder: Path, data: st.DataObject) -> None:
    whole, _ = header(tensors_of(folder))
    text = data.draw(raw(json.loads(whole[8:])))
    length = data.draw(st.sampled_from([len(text), len(text) + 1, 0, 2**63]))
    weights = length.to_bytes(8, "little") + text + b"\0" * 64
    assert isinstance(with_file(folder, SINGLE, weights, lambda: open_model(folder)), ToolkitError)


@given(data=st.data())
def test_configuration_of_an_adapter(tmp_path: Path, data: st.DataObject) -> None:
    config = {"peft_type": "LORA", "lora_alpha": 8, "bias": "none", "base_model_name_or_path": "org/name"}
    (tmp_path / "adapter_config.json").write_bytes(data.draw(raw(config)))
    entries = {f"base_model.model.x.lora_{half}.weight": (4, 4) for half in "AB"}
    head, size = header(entries)
    text = data.draw(st.sampled_from([head[8:]]) | raw(json.loads(head[8:])))
    (tmp_path / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * size)
    assert isinstance(held(lambda: read_adapter(tmp_path)), Adapter | ToolkitError)
    assert isinstance(held(lambda: open_model(tmp_path)), ToolkitError)


@pytest.mark.parametrize("what", AWKWARD_FILES)
@pytest.mark.parametrize("name", [*NAMES, SINGLE, INDEX])
def test_what_is_no_file(tmp_path: Path, name: str, what: str) -> None:
    folder = copy_nano(tmp_path / "nano")
    (folder / name).unlink(missing_ok=True)
    AWKWARD_FILES[what](folder / name)
    assert held(lambda: follow(view_model(open_model(folder)))) is not None
    if name == "config.json":
        assert isinstance(held(lambda: known_shape(str(folder))), ToolkitError)


@pytest.mark.parametrize("what", AWKWARD_RAW)
@pytest.mark.parametrize("name", NAMES[:5])
def test_text_that_is_no_model(folder: Path, name: str, what: str) -> None:
    view = with_file(folder, name, AWKWARD_RAW[what], lambda: follow(view_model(open_model(folder))))
    optional = ("generation_config.json", "special_tokens_map.json", "tokenizer_config.json")
    assert isinstance(view, ToolkitError) or (name in optional and what == "an empty object")
