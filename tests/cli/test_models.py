"""edgephi models: the matrix, list, show, synth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.catalog.model import open_model
from toolkit.catalog.preset import PRESETS, STAND_INS
from toolkit.catalog.recipe import list_recipes
from toolkit.cli import main
from toolkit.optimize.matrix import providers


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run `edgephi models …`; returns exit code, stdout and stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["models", *args])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


def test_matrix_as_a_table(run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run()
    assert code == 0
    assert "provider cpu" in out and "provider cuda" in out
    assert all(recipe.name in out for recipe in list_recipes())
    assert all(architecture in out for architecture in STAND_INS)
    assert "qnn: impossible: no bundle can be built for provider 'qnn'" in out
    assert "(1) " in out, "the reasons stand below"
    assert "phi-3-small-8k: with --trust-remote-code only" in out


def test_matrix_as_json(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("--json")
    assert (code, err) == (0, "")
    value = json.loads(out)
    assert "olive-ai" in value["tools"]
    cells = value["capabilities"]
    assert {cell["status"] for cell in cells} == {"tested", "expected", "impossible"}
    assert len(cells) == len(STAND_INS) * len(providers()) * len(list_recipes())
    assert all(cell["reason"] for cell in cells)


def test_list_has_every_preset(run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("list")
    assert code == 0
    assert all(name in out for name in PRESETS)
    assert [entry["name"] for entry in json.loads(run("list", "--json")[1])] == list(PRESETS)


def test_show(run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("show", "phi3-nano")
    assert code == 0
    assert "4,589,824" in out
    value = json.loads(run("show", "phi3-nano", "--json")[1])
    assert (value["id"], value["layers"], value["parameters"]) == ("phi3-nano", 4, 4_589_824)


def test_show_of_no_model_ends_with_3(run) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("show", ".")
    assert code == 3
    assert "not a model folder" in err


def test_synth_writes_a_model_that_is_whole(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "tiny"
    code, said, err = run("synth", "phi-3-tiny-gqa", "-o", str(out), "--layers", "1", "--seed", "7")
    assert (code, said) == (0, ""), err
    assert open_model(out).shape.layers == 1


def test_synth_does_not_overwrite(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.txt").write_text("keep")
    assert run("synth", "phi-3-tiny-gqa", "-o", str(tmp_path))[0] == 3
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_unknown_preset_ends_with_3(run) -> None:  # type: ignore[no-untyped-def]
    assert run("synth", "phi-4", "-o", "x")[0] == 3


def test_merge_without_an_adapter_ends_with_3(run, isolated: Path) -> None:  # type: ignore[no-untyped-def]
    (isolated / "mine").mkdir()
    assert run("merge", "mine", "-o", "new") == (
        3,
        "",
        "error: mine: not an adapter: no adapter_config.json\n"
        " hint: an adapter's folder holds adapter_config.json and adapter_model.safetensors\n",
    )


def test_merge_with_the_base_that_the_adapter_names(run, isolated: Path) -> None:  # type: ignore[no-untyped-def]
    import numpy
    from safetensors.numpy import save_file

    (isolated / "mine").mkdir()
    name = "base_model.model.model.layers.0.self_attn.o_proj"
    ones = numpy.ones((1, 256), "f4")
    save_file({f"{name}.lora_A.weight": ones, f"{name}.lora_B.weight": ones.T.copy()}, "mine/adapter_model.safetensors")
    config = {"peft_type": "LORA", "lora_alpha": 1, "base_model_name_or_path": "phi3-nano"}
    Path("mine/adapter_config.json").write_text(json.dumps(config))
    code, _, err = run("merge", "mine", "-o", "new")
    assert code == 0, err
    assert "base: phi3-nano" in err
    assert err.splitlines()[-1].startswith("new: ") and err.endswith("edgephi optimize ./new -p PROFILE\n")
    assert open_model(isolated / "new").shape.layers == 4
