"""Models as fine-tunes, older pages and newer tools leave them: built for real, and what comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import builds
from tests.support.builds import follow
from tests.support.model_folders import copy_nano, teach
from tests.support.warm_olive import warm_olive
from toolkit.bundle import list_bundles
from toolkit.catalog import load_recipe
from toolkit.catalog.preset import PRESETS
from toolkit.errors import BuildError
from toolkit.events import Event, Service, Warning_
from toolkit.optimize import BuildRequest, build
from toolkit.optimize.synth import synthesize


@pytest.fixture(autouse=True)
def warm() -> Iterator[None]:
    """Let builds find Olive imported: these are tests of a build's result, not of its start."""
    with warm_olive():
        yield


def graph(folder: Path) -> dict[str, str]:
    """The hashes of the graph and its weights that a build by fp32 makes of a model folder."""
    request = BuildRequest(str(folder), load_recipe("fp32"), builds.profile())
    built = follow(build.optimize(request))
    return {file.path: file.sha256 for file in built.manifest.artifacts if file.path.startswith("model.onnx")}


@pytest.mark.parametrize("name", ["phi-3-tiny-longrope", "phi-4-tiny"])
def test_positions_are_built_alike_however_they_are_spelt(tmp_path: Path, name: str) -> None:
    """As of transformers 5 the builder looks for some of them in places where that doesn't write them."""
    folder = follow(synthesize(PRESETS[name], tmp_path / "plain", layers=1))
    plain = graph(folder)
    config = json.loads((folder / "config.json").read_text())
    rope = {key: config.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in config}
    scaling = config.pop("rope_scaling")
    new = config | {"rope_parameters": scaling | rope | {"rope_type": scaling.pop("type")}}
    old = config | rope | {"rope_scaling": scaling | {"type": "su"}, "auto_map": None}
    for spelling, written in {"new": new, "old": old}.items():
        spelt = Path(shutil.copytree(folder, tmp_path / spelling))
        (spelt / "config.json").write_text(json.dumps(written))
        assert graph(spelt) == plain, spelling


def test_turns_end_without_a_generation_configuration(tmp_path: Path) -> None:
    """A model whose answer is four words and the end of its turn, and then goes on for ever."""
    import onnxruntime_genai as og
    from tokenizers import Tokenizer

    folder = copy_nano(tmp_path / "tuned")
    (folder / "generation_config.json").unlink()
    pipeline = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end, endoftext = (pipeline.token_to_id(token) for token in ("<|end|>", "<|endoftext|>"))
    asked = "<|user|>\nhello<|end|>\n<|assistant|>\n"
    answer = [500, 501, 502, 503, end, 600, 601]
    teach(folder, answer, pipeline.encode(asked, add_special_tokens=False).ids[-1])
    events: list[Event] = []
    built = follow(build.optimize(BuildRequest(str(folder), load_recipe("fp32"), builds.profile())), events)
    config = json.loads((built.path / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == [endoftext, end]
    assert any(isinstance(event, Warning_) and "'<|end|>'" in event.text for event in events)

    model = og.Model(str(built.path))
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=64)
    generator = og.Generator(model, params)
    generator.append_tokens(og.Tokenizer(model).encode(asked))
    said = []
    while not generator.is_done():
        generator.generate_next_token()
        said.append(int(generator.get_next_tokens()[0]))
    assert said == [500, 501, 502, 503, end]


def test_model_that_changes_during_its_build_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_nano(tmp_path / "mine")
    run = build.run_workflow

    def run_and_meddle(*args: Any, **options: Any) -> Service[Any]:
        result = yield from run(*args, **options)
        (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b"\n")
        return result

    monkeypatch.setattr(build, "run_workflow", run_and_meddle)
    with pytest.raises(BuildError, match=r"changed while it was being built: config\.json"):
        follow(build.optimize(BuildRequest(str(folder), load_recipe("int4-rtn-b32"), builds.profile())))
    assert list_bundles() == []
    assert not [path for path in (tmp_path / "cache" / "builds").iterdir() if path.is_dir()]
