"""toolkit.catalog.recipe: recipe files, their errors, and workflows that plain Olive runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import builds
from toolkit.catalog import load_recipe
from toolkit.catalog.model import shipped_model
from toolkit.catalog.recipe import PROVIDERS, calibration_file, check_calibration, impossible, list_recipes
from toolkit.errors import ConfigError
from toolkit.optimize.workflow import render_workflow

SHIPPED = [recipe.name for recipe in list_recipes()]

RTN = 'description = "x"\nalgorithm = "rtn"\nbits = 4\nblock_size = 32\n'
GPTQ = 'description = "x"\nalgorithm = "gptq"\nbits = 4\nblock_size = 32\n'
NONE = 'description = "x"\nalgorithm = "none"\nbits = 32\n'


def refusal(text: str) -> str:
    Path("bad.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe("bad.toml")
    return caught.value.message


def test_shipped_recipes() -> None:
    assert {"fp32", "int4-rtn-b32", "int4-kquant-b32", "int4-gptq-b32", "int4-rtn-b128"} <= set(SHIPPED)
    assert all(recipe.description for recipe in list_recipes())


def test_own_recipe_is_found_by_name_and_wins() -> None:
    Path("recipes").mkdir()
    Path("recipes/int4-rtn-b32.toml").write_text(RTN.replace("32", "64"))
    assert load_recipe("int4-rtn-b32").block_size == 64


def test_recipe_in_the_config_folder(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "recipes"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(RTN)
    assert load_recipe("mine").algorithm == "rtn"


def test_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'int4-rtn-b23' \(did you mean 'int4-rtn-b32'\?\)"):
        load_recipe("int4-rtn-b23")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RTN + "blocksize = 32\n", "blocksize: unknown key (did you mean 'block_size'?)"),
        (RTN.replace("32", "33"), "block_size"),
        (RTN.replace("rtn", "awq"), "algorithm"),
        (RTN.replace("bits = 4", "bits = 32"), "quantizes to 4 or 8"),
        (RTN.replace("block_size = 32\n", ""), "block_size: missing"),
        (RTN + "[calibration]\nsamples = 4\n", "calibration"),
        (GPTQ, "calibration: needed"),
        (RTN + "kv_cache_bits = 8\n", "calibration: needed"),
        (RTN + "kv_cache_bits = 4\n[calibration]\n", "kv_cache_bits"),
        (RTN + "head_bits = 2\n", "head_bits"),
        (RTN + '[mixed]\nmethod = "snr"\n', "share: missing"),
        (RTN + '[mixed]\nmethod = "snr"\nshare = 1.5\n', "mixed.share"),
        (RTN + '[mixed]\nmethod = "kquant-mixed"\nshare = 0.5\n', "decides by itself"),
        (RTN + 'head_bits = 8\n[mixed]\nmethod = "kquant-mixed"\n', "head_bits"),
        (RTN.replace("bits = 4", "bits = 8") + '[mixed]\nmethod = "kquant-mixed"\n', "goes with bits = 4"),
        (NONE + "rotate = true\n", "rotate: algorithm 'none' quantizes nothing"),
        (GPTQ + "[calibration]\nsample = 4\n", "calibration.sample: unknown key"),
        (NONE.replace("bits = 32", "bits = 4"), "keeps 32 bits"),
        (NONE + "block_size = 32\n", "quantizes nothing"),
        (RTN.replace('description = "x"\n', ""), "description: missing"),
    ],
)
def test_wrong_recipe_is_explained(text: str, message: str) -> None:
    said = refusal(text)
    assert said.startswith("bad.toml")
    assert message in said


def test_manifest_table_has_settings_and_no_prose() -> None:
    table = load_recipe("int4-gptq-b32").table()
    assert table["name"] == "int4-gptq-b32"
    assert table["calibration"] == {"samples": 16, "sequence_tokens": 256}
    assert "description" not in table and "path" not in table


def test_calibration_text_is_the_shipped_one_unless_given() -> None:
    recipe = load_recipe("int4-gptq-b32")
    shipped = calibration_file(recipe)
    assert shipped is not None
    lines = [json.loads(line) for line in shipped.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 64
    Path("mine.jsonl").write_text('{"text": "x"}\n')
    assert calibration_file(recipe, Path("mine.jsonl")) == Path("mine.jsonl").resolve()
    assert calibration_file(load_recipe("fp32")) is None


def test_calibration_text_is_not_what_quality_is_measured_on() -> None:
    shipped = calibration_file(load_recipe("int4-gptq-b32"))
    assert shipped is not None
    held_out = (shipped.parent / "heldout.txt").read_text(encoding="utf-8")
    for line in shipped.read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        assert not any(text[start : start + 80] in held_out for start in range(0, len(text) - 80, 40))


def test_calibration_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="no such calibration file"):
        calibration_file(load_recipe("int4-gptq-b32"), Path("absent.jsonl"))


def test_calibration_for_a_recipe_that_takes_none() -> None:
    with pytest.raises(ConfigError, match="takes no calibration text"):
        calibration_file(load_recipe("int4-rtn-b32"), Path("x.jsonl"))


def test_calibration_text_has_to_be_of_use_to_one_of_several_recipes() -> None:
    rtn, gptq, text = load_recipe("int4-rtn-b32"), load_recipe("int4-gptq-b32"), Path("mine.txt")
    text.write_text("words")
    check_calibration([rtn, gptq], text)
    check_calibration([rtn], None)
    check_calibration([], text)
    with pytest.raises(ConfigError, match="'int4-rtn-b32' takes no calibration text"):
        check_calibration([rtn], text)
    with pytest.raises(ConfigError, match="no such calibration file"):
        check_calibration([rtn, gptq], Path("absent.txt"))


def test_recipe_names_its_own_calibration_relative_to_itself() -> None:
    Path("recipes").mkdir()
    Path("recipes/own.toml").write_text(GPTQ + '[calibration]\nfile = "own.jsonl"\n')
    Path("recipes/own.jsonl").write_text('{"text": "x"}\n')
    assert calibration_file(load_recipe("own")) == Path("recipes/own.jsonl").resolve()


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", SHIPPED)
def test_workflow_is_json_and_trusts_no_remote_code(name: str, provider: str) -> None:
    recipe = load_recipe(name)
    if impossible(recipe, provider):
        return
    workflow = render_workflow(recipe, "org/model", provider, calibration_file(recipe), Path("out"), Path("cache"))
    assert json.loads(json.dumps(workflow)) == workflow
    assert workflow["input_model"]["load_kwargs"] == {"trust_remote_code": False}
    assert workflow["passes"]["export"]["extra_options"]["hf_remote"] is False
    expected = {
        "export": True,
        "quantize": recipe.quantized,
        "rotate": recipe.rotate,
        "select": recipe.mixed is not None,
    }
    assert {step: step in workflow["passes"] for step in expected} == expected
    assert list(workflow["passes"])[-1] == "export"


def passes(name: str) -> dict[str, Any]:
    recipe = load_recipe(name)
    file = calibration_file(recipe)
    passes: dict[str, Any] = render_workflow(recipe, "m", "cpu", file, Path("o"), Path("c"))["passes"]
    return passes


def test_share_of_8_bits_is_olives_ratio_of_the_rest() -> None:
    select = passes("int4-kquant-b32-snr")["select"]
    assert (select["bits"], select["high_bits"], select["ratio"]) == (4, 8, 0.75)


def test_share_of_2_bits_spares_head_and_embedding() -> None:
    found = passes("int4-gptq-b128-int2")
    assert (found["select"]["bits"], found["select"]["high_bits"], found["select"]["ratio"]) == (2, 4, 0.125)
    spared = {"lm_head": {"bits": 4}, "model.embed_tokens": {"bits": 4}}
    assert found["quantize"]["overrides"] == found["quantize_embedding"]["overrides"] == spared


def test_head_bits() -> None:
    assert passes("int4-kquant-b32-head8")["quantize"]["overrides"] == {"lm_head": {"bits": 8}}


def test_text_file_calibrates_by_paragraphs() -> None:
    recipe = load_recipe("int4-gptq-b32")
    workflow = render_workflow(recipe, "m", "cpu", Path("mine.txt"), Path("o"), Path("c"))
    loading = workflow["data_configs"][0]["load_dataset_config"]
    assert (loading["data_name"], loading["sample_by"]) == ("text", "paragraph")


@pytest.mark.parametrize(("name", "provider"), [("fp16", "cpu"), ("int4-rtn-b128-kv8", "cuda")])
def test_recipe_that_contradicts_the_provider(name: str, provider: str) -> None:
    recipe = load_recipe(name)
    with pytest.raises(ConfigError, match=f"recipe '{name}'"):
        render_workflow(recipe, "m", provider, calibration_file(recipe), Path("o"), Path("c"))


def test_provider_that_cannot_be_built_for() -> None:
    with pytest.raises(ConfigError, match="provider 'qnn'"):
        render_workflow(load_recipe("fp32"), "m", "qnn", None, Path("o"), Path("c"))


def test_plain_olive_runs_the_workflow(tmp_path: Path) -> None:
    model = shipped_model("phi3-nano")
    assert model is not None
    output = tmp_path / "output"
    workflow = render_workflow(load_recipe("int4-rtn-b32"), model.folder, "cpu", None, output, tmp_path / "olive-cache")
    config = tmp_path / "workflow.json"
    config.write_text(json.dumps(workflow))
    olive = Path(sys.executable).with_name("olive")
    environment = os.environ | {"CI": "1", "OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [olive, "run", "--config", config], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    made = (output / "model.onnx.data").read_bytes()
    assert made == (builds.bundle("int4-rtn-b32").path / "model.onnx.data").read_bytes()
