"""edgephi optimize: arguments, dry runs, results and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import builds
from tests.support.model_folders import change, copy_nano, shard
from toolkit.catalog.model import shipped_model
from toolkit.cli import main

RTN = "int4-rtn-b32"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run `edgephi optimize …`; returns exit code, stdout and stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["optimize", *args])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    builds.seed_cache(tmp_path / "cache", RTN)
    return tmp_path / "cache"


@pytest.mark.usefixtures("cache")
def test_json_is_all_that_stdout_gets(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("phi3-nano", "-p", "local", "-r", RTN, "--no-check", "--json")
    assert code == 0, err
    built = builds.bundle(RTN)
    value = json.loads(out)
    assert value["id"] == built.id
    assert value["manifest"] == built.manifest.model_dump(mode="json")
    assert "already done" in err


@pytest.mark.usefixtures("cache")
def test_table_names_the_bundle(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("phi3-nano", "-p", "local", "-r", RTN, "--no-check", "-o", str(tmp_path / "out"))
    assert code == 0, err
    assert "phi3-nano-int4-rtn-b32" in out and builds.bundle(RTN).id[:12] in out
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize("recipe", ["fp32", RTN, "int4-gptq-b32"])
def test_dry_run_prints_the_workflow_and_the_plan(run, tmp_path: Path, recipe: str) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("phi3-nano", "-p", "raspberry-pi-5-8gb", "-r", recipe, "--dry-run")
    assert code == 0, err
    assert "export" in json.loads(out)["passes"]
    assert f"{recipe} on raspberry-pi-5-8gb fits" in err
    assert not (tmp_path / "cache").exists()


def test_dry_run_of_a_hub_id_needs_no_network(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("microsoft/Phi-3-mini-4k-instruct", "-p", "raspberry-pi-5-8gb", "--dry-run")
    assert code == 0, err
    assert json.loads(out)["input_model"]["model_path"] == "microsoft/Phi-3-mini-4k-instruct"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["phi3-nano", "-p", "locl"], "unknown profile 'locl' (did you mean 'local'?)"),
        (["phi3-nano", "-p", "local", "-r", "int4"], "unknown recipe 'int4'"),
        (["phi3-nan", "-p", "local"], "no model 'phi3-nan' (did you mean 'phi3-nano'?)"),
        (["phi3-nano", "-p", "local", "-c", "2000"], "2000 tokens is more than the model's 1024"),
        (["phi3-nano", "-p", "local", "-r", "fp32", "--calibration", "x.jsonl"], "takes no calibration text"),
        (
            ["phi3-nano", "-p", "local", "-r", "int4-gptq-b32", "--calibration", "x"],
            "no such calibration file",
        ),
        ([".", "-p", "local"], "not a model folder: no config.json"),
    ],
)
def test_wrong_input_ends_with_3_and_builds_nothing(run, args: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run(*args, "--no-check")
    assert code == 3
    assert message in err
    assert out == ""


def model_folder(folder: Path, **keys: object) -> Path:
    copy_nano(folder)
    change(folder / "config.json", **keys)
    return folder


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 doesn't divide num_attention_heads 8"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling: type 'yarn' isn't supported"),
        ({"rope_scaling": {"type": "su"}, "max_position_embeddings": 8192}, "rope_scaling.short_factor: missing"),
    ],
)
def test_plan_refuses_what_optimize_refuses_at_once(
    isolated: Path, keys: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model_folder(isolated / "odd", **keys)
    said = []
    for command in ("plan", "optimize"):
        with pytest.raises(SystemExit) as ended:
            main([command, "./odd", "-p", "local"])
        said.append((ended.value.code, capsys.readouterr().err))
    assert said[0] == said[1]
    code, err = said[0]
    assert code == 3
    assert err.startswith(f"error: odd/config.json: {message}\n hint: ")


def test_stray_weights_end_with_3_before_anything_is_built(run, isolated: Path) -> None:  # type: ignore[no-untyped-def]
    folder = copy_nano(isolated / "stale")
    stray = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(stray)
    assert run("./stale", "-p", "local", "-r", "fp32") == (
        3,
        "",
        "error: stale: two sets of weights: model.safetensors, and the 2 files that model.safetensors.index.json "
        "lists\n hint: transformers would read the first and nothing else: move away the set that isn't this model's\n",
    )


def test_adapter_ends_with_3_and_the_command_that_merges_it(run, isolated: Path) -> None:  # type: ignore[no-untyped-def]
    (isolated / "mine").mkdir()
    (isolated / "mine" / "adapter_config.json").write_text('{"base_model_name_or_path": "phi3-nano"}')
    assert run("./mine", "-p", "local") == (
        3,
        "",
        "error: mine: an adapter for 'phi3-nano', not a whole model (adapter_config.json)\n"
        " hint: merge it with its base first: edgephi models merge ./mine -o NEW_FOLDER\n",
    )


def test_profile_is_needed(run) -> None:  # type: ignore[no-untyped-def]
    assert run("phi3-nano")[0] == 2


def test_missing_extra_ends_with_4(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    code, _, err = run("phi3-nano", "-p", "local")
    assert code == 4
    assert "torch isn't installed" in err and "edgephi[optimize]" in err


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder that needs remote code, which would be noticed if it ran."""
    model = shipped_model("phi3-nano")
    assert model is not None
    folder = Path(shutil.copytree(model.folder, tmp_path / "small"))
    config = json.loads((folder / "config.json").read_text()) | {
        "architectures": ["Phi3SmallForCausalLM"],
        "model_type": "phi3small",
        "auto_map": {"AutoModelForCausalLM": "modeling_phi3_small.Phi3SmallForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_phi3_small.py").write_text("raise SystemExit('remote code ran')")
    return folder


def test_remote_code_wants_a_flag_that_names_it(run, small: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run(str(small), "-p", "local", "-r", "fp32", "--no-check")
    assert code == 3
    assert "needs remote code: Python files that come with the model" in err
    assert "--trust-remote-code" in err


def test_trusted_code_in_a_dry_run(run, small: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run(str(small), "-p", "local", "-r", RTN, "--dry-run", "--trust-remote-code")
    assert code == 0, err
    workflow = json.loads(out)
    assert workflow["input_model"]["load_kwargs"] == {"trust_remote_code": True}
    assert list(workflow["passes"]) == ["export"]
    assert workflow["passes"]["export"]["extra_options"]["hf_remote"] is True


def test_the_flag_alone_trusts_nothing_that_needs_no_code(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("phi3-nano", "-p", "local", "-r", RTN, "--dry-run", "--trust-remote-code")
    assert code == 0, err
    workflow = json.loads(out)
    assert workflow["input_model"]["load_kwargs"] == {"trust_remote_code": False}
    assert workflow["passes"]["export"]["extra_options"]["hf_remote"] is False
