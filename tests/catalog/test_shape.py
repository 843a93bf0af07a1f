"""toolkit.catalog.shape and .rope: the configurations that a bundle can be built from, and the edits of the others."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.catalog.preset import PRESETS
from toolkit.catalog.shape import parse_shape, plain_config
from toolkit.errors import ConfigError

WHERE = "m/config.json"
LONG = "phi-3-tiny-longrope"


def config(preset: str = "phi-3-tiny", **keys: object) -> dict[str, Any]:
    return PRESETS[preset].config() | keys


def without(table: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in keys}


def scaling(**keys: object) -> dict[str, Any]:
    return config(LONG)["rope_scaling"] | keys


def refusal(table: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_shape(table, WHERE)
    assert caught.value.exit_code == 3
    return caught.value


def as_transformers_5(table: dict[str, Any]) -> dict[str, Any]:
    """The same model as transformers 5 saves it: all of its positions' settings in one table."""
    new = without(table, "rope_scaling", "rope_theta", "partial_rotary_factor")
    rope = without(table["rope_scaling"] or {}, "type")
    kind = (table["rope_scaling"] or {}).get("type", "default")
    share = table.get("partial_rotary_factor", 1.0)
    rope |= {"rope_type": kind, "rope_theta": table["rope_theta"], "partial_rotary_factor": share}
    return new | {"rope_parameters": rope}


def test_old_name_of_longrope_is_translated() -> None:
    old = config(LONG, rope_scaling=scaling(type="su"))
    assert parse_shape(old, WHERE) == parse_shape(config(LONG), WHERE)
    assert plain_config(old, WHERE) == config(LONG)


@pytest.mark.parametrize("name", [name for name in PRESETS if "small" not in name])
def test_published_configurations_are_given_on_as_they_are(name: str) -> None:
    assert plain_config(config(name), WHERE) == config(name)


@pytest.mark.parametrize("name", ["phi-4-mini", LONG, "phi-3-tiny"])
def test_transformers_5_spelling_is_written_out(name: str) -> None:
    """The builder looks for a rotated share outside the table of positions, and takes 1.0 for a missing one."""
    assert plain_config(as_transformers_5(config(name)), WHERE) == config(name)


def test_context_of_a_model_without_an_original_one_is_written_out() -> None:
    """Transformers takes 4096 for a missing one, and the builder then wants factors that the model hasn't."""
    table = without(config(), "original_max_position_embeddings")
    assert plain_config(table, WHERE) == config()


def test_stretched_context_without_factors_is_no_longrope() -> None:
    table = config(max_position_embeddings=2048)
    assert parse_shape(table, WHERE).original_context == 2048
    assert plain_config(table, WHERE)["original_max_position_embeddings"] == 2048


@pytest.mark.parametrize("key", ["auto_map", "head_dim", "quantization_config"])
def test_null_means_absent(key: str) -> None:
    assert plain_config(config(**{key: None}), WHERE) == config()


def test_ids_that_transformers_would_make_up_outside_the_vocabulary() -> None:
    table = without(config(), "pad_token_id", "eos_token_id")
    assert plain_config(table, WHERE) == table | {"pad_token_id": None, "eos_token_id": None}


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "linear", "llama3", "longrope2", 7, ["su"], {}, "x" * 10_000])
def test_other_types_of_positions_are_refused_at_once(kind: object) -> None:
    error = refusal(config(LONG, rope_scaling=scaling(type=kind)))
    assert error.message.startswith(f"{WHERE}: rope_scaling: ")
    if isinstance(kind, str) and len(kind) < 20:
        assert error.message == f"{WHERE}: rope_scaling: type '{kind}' isn't supported"
        assert error.hint == (
            "Phi-3 was trained with 'default' or 'longrope' ('su' is its old name): if the weights were too, "
            "take config.json from the model's page; other types can't be built"
        )


POSITIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a table that is none": ({"rope_scaling": "su"}, "rope_scaling: not a table"),
    "a table for each layer": (
        {"rope_scaling": None, "rope_parameters": {"full": {"rope_type": "default"}}},
        "rope_parameters: a table for each kind of layer (full)",
    ),
    "two tables": (
        {"rope_scaling": scaling(), "rope_parameters": {"rope_type": "default"}},
        "rope_scaling and rope_parameters contradict each other",
    ),
    "two types": (
        {"rope_scaling": scaling(rope_type="default")},
        "rope_scaling: rope_type and type contradict each other",
    ),
    "no type": (
        {"rope_scaling": without(scaling(), "type")},
        "rope_scaling: short_factor and long_factor belong to type 'longrope'",
    ),
    "no short factors": ({"rope_scaling": without(scaling(), "short_factor")}, "rope_scaling.short_factor: missing"),
    "few long factors": (
        {"rope_scaling": scaling(long_factor=[1.0] * 31)},
        "rope_scaling.long_factor: 31 values for 32 frequencies",
    ),
    "a factor of zero": (
        {"rope_scaling": scaling(long_factor=[0] * 32)},
        "rope_scaling.long_factor: not a list of positive numbers",
    ),
    "a factor that is true": (
        {"rope_scaling": scaling(long_factor=[True] * 32)},
        "rope_scaling.long_factor: not a list of positive numbers",
    ),
    "nothing stretched": (
        {"original_max_position_embeddings": 4096},
        "rope_scaling: type 'longrope' stretches 4096 positions (original_max_position_embeddings) to 4096 "
        "(max_position_embeddings)",
    ),
    "two originals": (
        {"rope_scaling": scaling(original_max_position_embeddings=512)},
        "original_max_position_embeddings and rope_scaling.original_max_position_embeddings contradict each other",
    ),
    "two thetas": (
        {"rope_scaling": scaling(rope_theta=5000.0)},
        "rope_theta and rope_scaling.rope_theta contradict each other",
    ),
    "an original that is text": (
        {"original_max_position_embeddings": "256"},
        "original_max_position_embeddings: '256' isn't a positive whole number",
    ),
    "a scale of attention": (
        {"rope_scaling": scaling(attention_factor=1.5)},
        "rope_scaling.attention_factor: transformers and the model builder scale attention differently with it",
    ),
    "another factor": (
        {"rope_scaling": scaling(factor=32.0)},
        "rope_scaling.factor: 32.0 contradicts max_position_embeddings / original_max_position_embeddings = 16",
    ),
    "theta of zero": ({"rope_theta": 0}, "rope_theta: '0' isn't a positive number"),
    "more than all rotated": (
        {"partial_rotary_factor": 1.5},
        "partial_rotary_factor: 1.5 of a head of 64 elements can't be rotated",
    ),
    "a share that the runtime can't rotate": (
        {"partial_rotary_factor": 0.625},
        "partial_rotary_factor: 0.625 of a head of 64 elements can't be rotated",
    ),
}


@pytest.mark.parametrize("what", POSITIONS)
def test_positions_that_cannot_be_right(what: str) -> None:
    keys, message = POSITIONS[what]
    error = refusal(config(LONG, **keys))
    assert error.message == f"{WHERE}: {message}"
    assert error.hint


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "3 key-value heads for 4": (
        {"num_key_value_heads": 3},
        "num_key_value_heads 3 doesn't divide num_attention_heads 4",
    ),
    "8 key-value heads for 4": (
        {"num_key_value_heads": 8},
        "num_key_value_heads 8 doesn't divide num_attention_heads 4",
    ),
    "a width that is no multiple": ({"hidden_size": 258}, "hidden_size 258 isn't a multiple of num_attention_heads 4"),
    "another width of heads": (
        {"head_dim": 96},
        "head_dim 96 contradicts hidden_size / num_attention_heads = 64",
    ),
    "narrow heads": (
        {"hidden_size": 160},
        "heads of 40 elements (hidden_size / num_attention_heads): the runtime's attention wants a multiple of 16",
    ),
    "zero heads": (
        {"num_attention_heads": 0},
        "missing or not a positive whole number: num_attention_heads ('0')",
    ),
    "true layers": (
        {"num_hidden_layers": True},
        "missing or not a positive whole number: num_hidden_layers ('True')",
    ),
    "layers in text": ({"num_hidden_layers": "2"}, "missing or not a positive whole number: num_hidden_layers ('2')"),
    "half a layer": ({"num_hidden_layers": 2.0}, "missing or not a positive whole number: num_hidden_layers ('2.0')"),
    "no vocabulary": ({"vocab_size": None}, "missing or not a positive whole number: vocab_size (missing)"),
    "a vocabulary of all numbers": (
        {"vocab_size": 10**39},
        f"vocab_size: {str(10**39)[:40]} is more than any Phi-3 has",
    ),
    "no window": ({"sliding_window": 0}, "missing or not a positive whole number: sliding_window ('0')"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act: 'gelu' isn't supported"),
    "biases": ({"attention_bias": True}, "attention_bias: no Phi-3 has biases"),
    "tied by a text": ({"tie_word_embeddings": "false"}, "tie_word_embeddings: 'false' is neither true nor false"),
    "int8": ({"torch_dtype": "int8"}, "torch_dtype: 'int8' isn't a type of unquantized weights"),
    "float8": ({"dtype": "float8_e4m3fn"}, "dtype: 'float8_e4m3fn' isn't a type of unquantized weights"),
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, "the model is already quantized (awq)"),
    "quantized by nobody": ({"quantization_config": {}}, "the model is already quantized (an unknown method)"),
    "quantized by MLX": ({"quantization": {"bits": 4}}, "the model is already quantized (MLX)"),
    "no kind": ({"model_type": None}, "model_type: missing; architecture 'Phi3ForCausalLM' has 'phi3'"),
    "another kind": ({"model_type": "llama"}, "model_type: 'llama'; architecture 'Phi3ForCausalLM' has 'phi3'"),
    "no architecture": ({"architectures": None}, "architectures: missing"),
    "two architectures": ({"architectures": ["Phi3ForCausalLM", "X"]}, "architectures: more than one"),
    "another file of weights": (
        {"transformers_weights": "other.safetensors"},
        "transformers_weights: names other files in the place of the usual ones",
    ),
    "another configuration": (
        {"configuration_files": ["config.4.0.0.json"]},
        "configuration_files: names other files in the place of the usual ones",
    ),
    "epsilon": ({"rms_norm_eps": 0}, "rms_norm_eps: '0' isn't between 0 and 1"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_configurations_that_cannot_be_built(what: str) -> None:
    keys, message = OTHERS[what]
    assert refusal(config(**keys)).message == f"{WHERE}: {message}"


def test_key_value_heads_are_refused_with_the_edit() -> None:
    assert refusal(config(num_key_value_heads=3)).hint == (
        'as many attention heads share each key-value head: set "num_key_value_heads" to a divisor of 4, '
        "the one that the weights were made with"
    )
