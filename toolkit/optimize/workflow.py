"""The Olive workflow of a recipe: JSON that `olive run` accepts as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.catalog import Recipe
from toolkit.catalog.recipe import BY_NOISE, BY_PLACE, PROVIDERS, Calibration, MixedPrecision, impossible
from toolkit.errors import ConfigError

_QUANTIZERS = {"rtn": "Rtn", "kquant": "KQuant", "gptq": "Gptq"}
_HEAD = "lm_head"
_EMBEDDING = "model.embed_tokens"


def render_workflow(
    recipe: Recipe,
    model: Path | str,
    provider: str,
    calibration: Path | None,
    output_dir: Path,
    cache_dir: Path,
    *,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """The Olive configuration of a build: JSON that `olive run --config` accepts as it stands.

    `model` is a folder or a hub id. Quantizing before the export, rather than in it, keeps the peak memory at
    a third. `trust_remote_code` is for models that come with code of their own, and for no other. Raises
    ConfigError for a provider that bundles can't be built for.
    """
    if provider not in PROVIDERS:
        raise ConfigError(f"no bundle can be built for provider '{provider}'", f"known: {', '.join(PROVIDERS)}")
    if reason := impossible(recipe, provider, remote_code=trust_remote_code):
        raise ConfigError(reason, f"take another recipe for provider '{provider}', such as int4-rtn-b32")
    device, execution_provider = PROVIDERS[provider]
    accelerator = {"device": device, "execution_providers": [execution_provider]}
    workflow: dict[str, Any] = {
        "input_model": {
            "type": "HfModel",
            "model_path": str(model),
            "load_kwargs": {"trust_remote_code": trust_remote_code},
        },
        "systems": {"here": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "host": "here",
        "target": "here",
        "passes": _passes_with_remote_code(recipe) if trust_remote_code else _passes(recipe),
        "evaluate_input_model": False,
        "output_dir": str(output_dir),
        "cache_dir": str(cache_dir),
        "log_severity_level": 1,
    }
    if recipe.algorithm == "gptq" and recipe.calibration is not None and calibration is not None:
        workflow["data_configs"] = [_data_config(recipe.calibration, model, calibration)]
    return workflow


def _passes(recipe: Recipe) -> dict[str, dict[str, Any]]:
    # The builder trusts remote code unless told otherwise, whatever Olive was told.
    options: dict[str, Any] = {"hf_remote": False}
    if recipe.prune_lm_head:
        options["prune_lm_head"] = True
    export: dict[str, Any] = {"type": "ModelBuilder", "precision": f"fp{recipe.bits}", "extra_options": options}
    if not recipe.quantized:
        return {"export": export}
    export |= {"precision": "int4", "int4_block_size": recipe.block_size}
    if recipe.accuracy_level:
        export["int4_accuracy_level"] = recipe.accuracy_level
    passes: dict[str, dict[str, Any]] = {}
    if recipe.rotate:
        passes["rotate"] = {"type": "QuaRot"}
    if recipe.mixed is not None:
        passes["select"] = _selection(recipe, recipe.mixed)
    quantize = _quantization(recipe, recipe.algorithm)
    if recipe.algorithm == "gptq":
        quantize["data_config"] = "calibration"
    elif recipe.quantize_embedding:
        quantize["embeds"] = True
    passes["quantize"] = quantize
    if recipe.algorithm == "gptq" and recipe.quantize_embedding:
        # GPTQ corrects matrices by their input activations; a lookup table has no such input.
        passes["quantize_embedding"] = _quantization(recipe, "kquant") | {"embeds": True}
    return passes | {"export": export}


def _passes_with_remote_code(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The builder alone, since it takes a model that is loaded by its own code only from unquantized checkpoints."""
    export = _passes(recipe)["export"]
    export["extra_options"]["hf_remote"] = True
    if recipe.quantized:
        export["int4_is_symmetric"] = recipe.symmetric
    if recipe.quantize_embedding:
        export["int4_op_types_to_quantize"] = ["MatMul", "Gather"]
    return {"export": export}


def _quantization(recipe: Recipe, algorithm: str) -> dict[str, Any]:
    quantize: dict[str, Any] = {
        "type": _QUANTIZERS[algorithm],
        "bits": recipe.bits,
        "group_size": recipe.block_size,
        "sym": recipe.symmetric,
        "lm_head": True,
    }
    bits: dict[str, int] = {}
    if recipe.mixed is not None and recipe.mixed.bits < recipe.bits:
        # Olive takes the few bits as the default here; these two modules are too sensitive for them.
        bits |= {_HEAD: recipe.bits, _EMBEDDING: recipe.bits}
    if recipe.head_bits is not None:
        bits[_HEAD] = recipe.head_bits
    if bits:
        quantize["overrides"] = {module: {"bits": value} for module, value in bits.items()}
    return quantize


def _selection(recipe: Recipe, mixed: MixedPrecision) -> dict[str, Any]:
    if mixed.method in BY_PLACE:
        return {"type": "SelectiveMixedPrecision", "algorithm": BY_PLACE[mixed.method]}
    share = mixed.share or 0.0
    few, many = sorted((recipe.bits, mixed.bits))
    return {
        "type": "SelectiveMixedPrecision",
        "algorithm": BY_NOISE[mixed.method],
        "bits": few,
        "high_bits": many,
        "group_size": recipe.block_size,
        "sym": recipe.symmetric,
        # Olive's ratio is the share of the few bits.
        "ratio": round(1 - share if mixed.bits == many else share, 6),
    }


def _data_config(calibration: Calibration, model: Path | str, file: Path) -> dict[str, Any]:
    return {
        "name": "calibration",
        "type": "HuggingfaceContainer",
        "load_dataset_config": {
            "type": "huggingface_dataset",
            **_dataset(file),
            "data_files": str(file),
            "split": "train",
        },
        "pre_process_data_config": {
            "type": "text_generation_huggingface_pre_process",
            "model_name": str(model),
            "text_cols": ["text"],
            "strategy": "join",
            "add_special_tokens": False,
            "max_seq_len": calibration.sequence_tokens,
            "max_samples": calibration.samples,
        },
        "dataloader_config": {"batch_size": 1},
    }


def _dataset(file: Path) -> dict[str, str]:
    return {"data_name": "text", "sample_by": "paragraph"} if file.suffix == ".txt" else {"data_name": "json"}
