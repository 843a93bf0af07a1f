"""Recipes: how a model becomes a bundle, and the Olive workflow that does it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toolkit.config import find_toml, parse_table, read_toml, shipped_dir, unknown_name
from toolkit.errors import ConfigError

# Execution provider -> Olive's device and ONNX Runtime's name.
PROVIDERS = {
    "cpu": ("cpu", "CPUExecutionProvider"),
    "cuda": ("gpu", "CUDAExecutionProvider"),
}
_QUANTIZERS = {"rtn": "Rtn", "kquant": "KQuant", "gptq": "Gptq"}

Count = Annotated[int, Field(strict=True, ge=1)]


class Calibration(BaseModel):
    """The text that a data-aware algorithm looks at. `file` is JSON lines with a `text` in each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str | None = Field(None, description="path, relative to the recipe; the shipped text when absent")
    samples: Annotated[int, Field(strict=True, ge=1, le=4096)] = 16
    sequence_tokens: Annotated[int, Field(strict=True, ge=16, le=8192)] = 256


class Recipe(BaseModel):
    """A way to quantize. `name` is the file's stem.

    `accuracy_level` 4 lets the CPU compute in int8, which is about 2.3 times as fast; 0 keeps fp32
    activations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(exclude=True)
    path: Path = Field(exclude=True)
    description: str
    algorithm: Literal["none", "rtn", "kquant", "gptq"]
    bits: Literal[4, 8, 32]
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    symmetric: bool = False
    accuracy_level: Literal[0, 1, 2, 3, 4] = 4
    quantize_embedding: bool = Field(False, description="the token table too; smaller by vocab × hidden × 3.4 B")
    prune_lm_head: bool = Field(False, description="logits of the last token only; perplexity can't be measured")
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Recipe:
        if self.algorithm == "none":
            if self.bits != 32:
                raise ValueError("bits: algorithm 'none' keeps 32 bits")
            if self.block_size is not None or self.quantize_embedding:
                raise ValueError("block_size and quantize_embedding: algorithm 'none' quantizes nothing")
        elif self.bits == 32:
            raise ValueError(f"bits: algorithm '{self.algorithm}' quantizes to 4 or 8")
        elif self.block_size is None:
            raise ValueError("block_size: missing (16, 32, 64, 128 or 256)")
        if (self.calibration is not None) != (self.algorithm == "gptq"):
            raise ValueError("calibration: needed by algorithm 'gptq', and by no other")
        if self.quantize_embedding and self.algorithm == "gptq":
            raise ValueError("quantize_embedding: 'gptq' has no form of it")
        return self

    @property
    def quantized(self) -> bool:
        return self.algorithm != "none"

    def table(self) -> dict[str, Any]:
        """What a manifest records: the name, and every setting that decides the result."""
        return {"name": self.name} | self.model_dump(mode="json", exclude_none=True, exclude={"description"})


def load_recipe(name_or_path: str) -> Recipe:
    """A recipe by name, or by path when it ends in `.toml`.

    Raises ConfigError naming file, key and reason.
    """
    if name_or_path.endswith(".toml"):
        return _load(Path(name_or_path).expanduser())
    found = find_toml("recipes")
    if name_or_path not in found:
        raise unknown_name("recipe", name_or_path, found, f"known recipes: {', '.join(found)}")
    return _load(found[name_or_path])


def list_recipes() -> list[Recipe]:
    """Every recipe that a name reaches, in the order of names."""
    return [_load(path) for path in find_toml("recipes").values()]


def _load(path: Path) -> Recipe:
    return parse_table(Recipe, read_toml(path), path, given={"name": path.stem, "path": path})


def calibration_file(recipe: Recipe, given: Path | None = None) -> Path | None:
    """The file a recipe calibrates with: the one given, its own, or the shipped text; None if it needs none.

    Raises ConfigError when it doesn't exist, or when one is given to a recipe that takes none.
    """
    if recipe.calibration is None:
        if given is not None:
            message = f"recipe '{recipe.name}' takes no calibration text (its algorithm is {recipe.algorithm})"
            raise ConfigError(message, "int4-gptq-b32 takes one")
        return None
    own = recipe.path.parent / recipe.calibration.file if recipe.calibration.file else None
    path = given or own or shipped_dir("recipes").parent / "calibration.jsonl"
    if not path.is_file():
        raise ConfigError(f"{path}: no such calibration file", 'one JSON object a line: {"text": "…"}')
    return path.resolve()


def render_workflow(
    recipe: Recipe,
    model: Path | str,
    provider: str,
    calibration: Path | None,
    output_dir: Path,
    cache_dir: Path,
) -> dict[str, Any]:
    """The Olive configuration of a build: JSON that `olive run --config` accepts as it stands.

    `model` is a folder or a hub id. Quantizing before the export, rather than in it, keeps the peak memory at
    a third. Raises ConfigError for a provider that bundles can't be built for.
    """
    if provider not in PROVIDERS:
        raise ConfigError(f"no bundle can be built for provider '{provider}'", f"known: {', '.join(PROVIDERS)}")
    device, execution_provider = PROVIDERS[provider]
    accelerator = {"device": device, "execution_providers": [execution_provider]}
    workflow: dict[str, Any] = {
        "input_model": {
            "type": "HfModel",
            "model_path": str(model),
            "load_kwargs": {"trust_remote_code": False},
        },
        "systems": {"here": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "host": "here",
        "target": "here",
        "passes": _passes(recipe),
        "evaluate_input_model": False,
        "output_dir": str(output_dir),
        "cache_dir": str(cache_dir),
        "log_severity_level": 1,
    }
    if recipe.calibration is not None and calibration is not None:
        workflow["data_configs"] = [_data_config(recipe.calibration, model, calibration)]
    return workflow


def _passes(recipe: Recipe) -> dict[str, dict[str, Any]]:
    # The builder trusts remote code unless told otherwise, whatever Olive was told.
    options: dict[str, Any] = {"hf_remote": False}
    if recipe.prune_lm_head:
        options["prune_lm_head"] = True
    export: dict[str, Any] = {"type": "ModelBuilder", "precision": "fp32", "extra_options": options}
    if not recipe.quantized:
        return {"export": export}
    quantize: dict[str, Any] = {
        "type": _QUANTIZERS[recipe.algorithm],
        "bits": recipe.bits,
        "group_size": recipe.block_size,
        "sym": recipe.symmetric,
        "lm_head": True,
    }
    if recipe.quantize_embedding:
        quantize["embeds"] = True
    if recipe.calibration is not None:
        quantize["data_config"] = "calibration"
    export |= {"precision": "int4", "int4_block_size": recipe.block_size}
    if recipe.accuracy_level:
        export["int4_accuracy_level"] = recipe.accuracy_level
    return {"quantize": quantize, "export": export}


def _data_config(calibration: Calibration, model: Path | str, file: Path) -> dict[str, Any]:
    return {
        "name": "calibration",
        "type": "HuggingfaceContainer",
        "load_dataset_config": {
            "type": "huggingface_dataset",
            "data_name": "json",
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
