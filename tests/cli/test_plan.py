from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolkit.catalog.preset import PRESETS
from toolkit.cli.plan import plan
from toolkit.errors import ConfigError, HostUnreachable
from toolkit.metrics.measurement import find_measurement

HUB_ID = "microsoft/Phi-3-mini-4k-instruct"


def ask(*args: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(plan, [*args, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: list[dict[str, object]] = json.loads(result.stdout)
    return found


def test_a_hub_id_is_planned_for_every_recipe_without_a_network() -> None:
    plans = {entry["recipe"]: entry for entry in ask(HUB_ID, "--profile", "raspberry-pi-5-4gb", "--all")}
    assert {"fp32", "int4-rtn-b32", "int4-rtn-b128"} <= set(plans)
    assert "fp16" not in plans  # not for a CPU
    assert not plans["fp32"]["fits"]
    assert plans["int4-rtn-b128"]["fits"]
    preset = ask("phi-3-mini-4k", "--profile", "raspberry-pi-5-4gb", "--all")
    assert plans == {entry["recipe"]: entry for entry in preset}


def test_without_a_recipe_it_is_the_profiles() -> None:
    assert [entry["recipe"] for entry in ask(HUB_ID, "-p", "raspberry-pi-5-4gb")] == ["int4-rtn-b128"]


def test_json_has_every_figure_and_where_it_comes_from() -> None:
    (found,) = ask(HUB_ID, "-p", "raspberry-pi-5-8gb", "--prompt", "1000")
    assert found["prompt_tokens"] == 1000
    assert found["ttft_ms"] == pytest.approx(1e6 / float(str(found["prefill_tps"])))
    assert (found["decode_source"], found["prefill_source"]) == ("stated", "stated")
    assert set(dict(found["host"])) == {"ram_bytes", "disk_bytes"}  # type: ignore[call-overload]


@pytest.mark.usefixtures("local")
def test_this_machine_is_measured_the_first_time() -> None:
    (first,) = ask(HUB_ID, "-p", "local", "-r", "int4-rtn-b32")
    assert (first["decode_source"], first["prefill_source"]) == ("measured", "measured")
    kept = find_measurement("local")
    (second,) = ask(HUB_ID, "-t", "local", "-r", "int4-rtn-b32")
    # Where other programs were busy just now the measurement wasn't kept, and is taken again.
    assert second == first if kept else second["decode_source"] == "measured"


def test_a_target_that_is_off_is_planned_from_its_data_sheet(isolated: Path) -> None:
    (isolated / "targets").mkdir()
    (isolated / "targets" / "away.toml").write_text('host = "127.0.0.1"\nport = 9\nprofile = "raspberry-pi-5-8gb"\n')
    (found,) = ask(HUB_ID, "-t", "away")
    assert found["decode_source"] == "stated"
    with pytest.raises(HostUnreachable):
        CliRunner().invoke(plan, [HUB_ID, "-t", "away", "--measure"], catch_exceptions=False)


def test_a_folder_needs_no_weights(isolated: Path) -> None:
    (isolated / "config.json").write_text(json.dumps(PRESETS["phi-3-medium-4k"].config()))
    (medium,) = ask(str(isolated), "-p", "jetson-agx-orin-64gb", "-r", "int4-rtn-b32", "-c", "4096")
    assert medium["context_tokens"] == 4096
    assert medium["fits"]


def test_decode_is_predicted_from_the_stated_bandwidth_and_left_out_without_one() -> None:
    (pi5,) = ask(HUB_ID, "-p", "raspberry-pi-5-8gb", "-r", "int4-rtn-b32")
    (pi4,) = ask(HUB_ID, "-p", "raspberry-pi-4-8gb", "-r", "int4-rtn-b32")
    assert isinstance(pi5["decode_tps"], float) and isinstance(pi4["decode_tps"], float)
    assert 2 < pi4["decode_tps"] < pi5["decode_tps"] < 6
    (npu,) = ask(HUB_ID, "-p", "laptop-npu-intel", "-r", "int4-rtn-b32")
    assert isinstance(npu["decode_tps"], float) and npu["prefill_tps"] is None


def test_the_table_says_what_fits() -> None:
    text = CliRunner().invoke(plan, [HUB_ID, "-p", "raspberry-pi-5-4gb", "--all"]).output
    assert f"{HUB_ID} on raspberry-pi-5-4gb" in text
    assert "NO" in text and "yes" in text
    assert "prompt 512" in text and "Speed from the profile's data sheet" in text


@pytest.mark.parametrize("args", [(), ("-p", "local", "-t", "local")])
def test_one_device_is_needed(args: tuple[str, ...]) -> None:
    result = CliRunner().invoke(plan, [HUB_ID, *args])
    assert result.exit_code == 2
    assert "give either --profile or --target" in result.output


def test_an_unknown_model_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError) as error:
        CliRunner().invoke(plan, ["phi-3-mini-4", "-p", "local"], catch_exceptions=False)
    assert error.value.message.startswith("unknown model 'phi-3-mini-4' (did you mean 'phi-3-mini-")


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(ConfigError, match="is more than the model's 4096"):
        CliRunner().invoke(plan, [HUB_ID, "-p", "local", "-c", "5000"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("-p", "local", "--measure"), "--measure needs a --target"),
        (("-p", "raspberry-pi-5-8gb", "--all", "-r", "fp32"), "give either --recipe or --all"),
    ],
)
def test_options_that_contradict_each_other(args: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(plan, [HUB_ID, *args])
    assert result.exit_code == 2
    assert message in result.output
