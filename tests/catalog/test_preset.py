"""toolkit.catalog.preset: the shipped shapes, and the errors about files that describe none."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import DATA
from toolkit.catalog.preset import PRESETS, STAND_INS, preset, read_preset
from toolkit.config import data_path
from toolkit.errors import ConfigError

# The values of the presets before they became files; later presets needn't be in it.
KNOWN: dict[str, Any] = json.loads((DATA / "presets.json").read_text())


def sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, indent=1).encode()).hexdigest()


def test_presets_keep_their_names_and_their_order() -> None:
    assert [name for name in PRESETS if name in KNOWN["presets"]] == list(KNOWN["presets"])
    assert [(name, small) for name, small in STAND_INS.items() if name in KNOWN["stand_ins"]] == list(
        KNOWN["stand_ins"].items()
    )
    assert {path.stem for path in data_path("presets").iterdir()} == set(PRESETS)


@pytest.mark.parametrize("name", KNOWN["presets"])
def test_values_are_those_that_have_always_been_shipped(name: str) -> None:
    found, known = PRESETS[name], dict(KNOWN["presets"][name])
    assert sha256(list(found.short_factor)) == known.pop("short_factor_sha256")
    assert sha256(list(found.long_factor)) == known.pop("long_factor_sha256")
    # The order of the keys counts: config.json is written in it.
    assert sha256(found.config()) == known.pop("config_sha256")
    assert sha256(found.cut(1).config()) == known.pop("first_layer_config_sha256")
    assert found.token_ids == known.pop("token_ids")
    assert {key: getattr(found, key) for key in known} == known


def test_what_is_done_to_a_config_stays_with_its_reader() -> None:
    config: Any = PRESETS["phi-3-mini-128k"].config()
    config["rope_scaling"]["long_factor"].clear()
    assert len(PRESETS["phi-3-mini-128k"].config()["rope_scaling"]["long_factor"]) == 48  # type: ignore[index]


def test_no_file_is_read_before_a_preset_is_asked_for() -> None:
    code = (
        "import sys\nopened = []\n"
        "sys.addaudithook(lambda event, args: event == 'open' and opened.append(str(args[0])))\n"
        "from toolkit.catalog.preset import PRESETS\n"
        "print(any('presets' in name for name in opened), len(PRESETS), any('presets' in name for name in opened))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(len(PRESETS)), "True"]


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no preset is called 'phi-3-huge'") as caught:
        preset("phi-3-huge")
    assert str(caught.value.hint).endswith(", ".join(PRESETS))


@pytest.fixture
def content() -> dict[str, Any]:
    """The content of a preset's file with every field."""
    value: dict[str, Any] = json.loads((data_path("presets") / "phi-3-tiny-longrope.json").read_bytes())
    return value


def refusal(content: object) -> str:
    path = Path("broken.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        read_preset(path)
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a JSON object"),
        ('{"preset": 1, "preset": 2}', "'preset' stands twice"),
        (f'{{"preset": "{"x" * (64 << 10)}"}}', "longer than 65,536 bytes"),
    ],
)
def test_file_that_is_no_preset(isolated: Path, text: str, why: str) -> None:
    message = refusal(text)
    assert message.startswith("broken.json: not a preset: ") and why in message


def test_absent_file(isolated: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json: not a preset: .*No such file"):
        read_preset(Path("absent.json"))


def test_misspelt_key_of_ours_is_named(isolated: Path, content: dict[str, Any]) -> None:
    content["preset"]["hubid"] = content["preset"].pop("hub_id")
    assert "preset.hubid: unknown key (did you mean 'hub_id'?)" in refusal(content)


def test_senseless_number_is_named(isolated: Path, content: dict[str, Any]) -> None:
    content["config"]["num_hidden_layers"] = 0
    assert refusal(content) == "broken.json: missing or not a positive whole number: layers"


def test_token_that_a_model_needs(isolated: Path, content: dict[str, Any]) -> None:
    del content["preset"]["token_ids"]["<|end|>"]
    assert refusal(content) == "broken.json: preset.token_ids: missing: <|end|>"


@pytest.mark.parametrize("number", [-1, 3328])
def test_token_outside_the_vocabulary(isolated: Path, content: dict[str, Any], number: int) -> None:
    content["preset"]["token_ids"]["<|end|>"] = number
    assert refusal(content) == "broken.json: preset.token_ids: an id outside the vocabulary of 3328"


@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_factors_are_as_many_as_frequencies(isolated: Path, content: dict[str, Any], key: str) -> None:
    content["config"]["rope_scaling"][key].pop()
    assert refusal(content) == f"broken.json: config.rope_scaling.{key}: 31 values for 32 frequencies"


def test_factors_are_numbers(isolated: Path, content: dict[str, Any]) -> None:
    content["config"]["rope_scaling"]["long_factor"][3] = "wide"
    assert "broken.json: config: rope_scaling.long_factor.3: must be a valid number" in refusal(content)


def test_share_of_a_head_is_at_most_the_whole(isolated: Path, content: dict[str, Any]) -> None:
    content["config"]["partial_rotary_factor"] = 1.5
    assert "config: partial_rotary_factor: must be less than or equal to 1" in refusal(content)
