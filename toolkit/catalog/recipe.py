"""Recipes: the settings that turn a model into a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from toolkit.catalog.record import Record
from toolkit.catalog.toml import find_file, find_toml, parse_table, read_toml
from toolkit.catalog.trust import admit
from toolkit.config import data_path
from toolkit.errors import ConfigError

# Execution provider -> Olive's device and ONNX Runtime's name.
PROVIDERS = {
    "cpu": ("cpu", "CPUExecutionProvider"),
    "cuda": ("gpu", "CUDAExecutionProvider"),
}
# Mixed precision: our name -> Olive's. Those of llama.cpp go by a layer's place, the others by measured noise.
BY_PLACE = {"kquant-mixed": "k_quant_mixed", "kquant-down": "k_quant_down"}
BY_NOISE = {"snr": "snr", "snr-relative": "snr_relative", "iqe": "iqe", "iqe-relative": "iqe_relative"}


class Calibration(Record):
    """Text to look at while quantizing: JSON lines with a `text` in each, or a plain text file (.txt)."""

    file: str | None = Field(None, description="path, relative to the recipe; the shipped text when absent")
    samples: Annotated[int, Field(strict=True, ge=1, le=4096)] = 16
    sequence_tokens: Annotated[int, Field(strict=True, ge=16, le=8192)] = 256

    @property
    def tokens(self) -> int:
        """The least number of tokens that the text must have."""
        return self.samples * self.sequence_tokens


class MixedPrecision(Record):
    """Some matrices in other bits than the recipe's.

    `kquant-mixed` and `kquant-down` give 8 bits to the matrices that llama.cpp gives them to: the head, and the down
    projections (`-mixed`: also the attention's inputs) of the first eighth of the layers, of the last eighth, and of
    every third layer between. `snr` (signal to noise) and `iqe` (inverse of the quantization error) rank all matrices
    by the noise that quantizing adds, `-relative` by the change of it that the other bits would bring; `share` of the
    weights get `bits`: the most sensitive ones 8, the least sensitive ones 2.
    """

    method: Literal["kquant-mixed", "kquant-down", "snr", "snr-relative", "iqe", "iqe-relative"]
    bits: Literal[2, 8] = 8
    share: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> MixedPrecision:
        if self.method in BY_PLACE and (self.share is not None or self.bits != 8):
            raise ValueError(f"method '{self.method}' decides by itself what gets 8 bits")
        if self.method in BY_NOISE and self.share is None:
            raise ValueError(f"share: missing; method '{self.method}' needs one, such as 0.25")
        return self


_OF_QUANTIZED = ("block_size", "quantize_embedding", "head_bits", "rotate", "mixed", "symmetric")


class Recipe(Record):
    """A way to quantize. `name` is the file's stem.

    `accuracy_level` 4 lets the CPU compute in int8, which is about 2.3 times as fast; 0 keeps fp32
    activations.
    """

    name: str = Field(exclude=True)
    path: Path = Field(exclude=True)
    description: str
    algorithm: Literal["none", "rtn", "kquant", "gptq"]
    bits: Literal[4, 8, 16, 32]
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    symmetric: bool = False
    accuracy_level: Literal[0, 1, 2, 3, 4] = 4
    head_bits: Literal[4, 8] | None = Field(None, description="of the output head; `bits` when absent")
    quantize_embedding: bool = Field(False, description="the token table too; smaller by vocab × hidden × 3.4 B")
    prune_lm_head: bool = Field(False, description="logits of the last token only; faster prompts")
    rotate: bool = Field(False, description="QuaRot: spread outliers by a Hadamard rotation before quantizing")
    kv_cache_bits: Literal[8] | None = Field(None, description="of cached keys and values; floats when absent")
    mixed: MixedPrecision | None = None
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Recipe:
        if self.quantized:
            if self.bits > 8:
                raise ValueError(f"bits: algorithm '{self.algorithm}' quantizes to 4 or 8")
            if self.block_size is None:
                raise ValueError("block_size: missing (16, 32, 64, 128 or 256)")
        else:
            if self.bits < 16:
                raise ValueError("bits: algorithm 'none' keeps 32 bits, or 16 on a GPU")
            given = [name for name in _OF_QUANTIZED if getattr(self, name)]
            if given:
                raise ValueError(f"{', '.join(given)}: algorithm 'none' quantizes nothing")
        self._check_mixed()
        if (self.calibration is not None) != self.calibrated:
            raise ValueError("calibration: needed by algorithm 'gptq' and by kv_cache_bits, and by nothing else")
        return self

    def _check_mixed(self) -> None:
        if self.mixed is None:
            return
        if self.bits != 4:
            raise ValueError("mixed: goes with bits = 4")
        if self.head_bits is not None and self.mixed.method in BY_PLACE:
            raise ValueError(f"head_bits: mixed method '{self.mixed.method}' keeps the head in 8 bits")

    @property
    def calibrated(self) -> bool:
        """True when the build looks at text."""
        return self.algorithm == "gptq" or self.kv_cache_bits is not None

    @property
    def quantized(self) -> bool:
        return self.algorithm != "none"

    def table(self) -> dict[str, Any]:
        """The recipe as a manifest records it: the name, and every setting that decides the result."""
        return {"name": self.name} | self.model_dump(mode="json", exclude_none=True, exclude={"description"})


def load_recipe(name_or_path: str) -> Recipe:
    """A recipe by name, or by path when it ends in `.toml`.

    Raises ConfigError naming file, key and reason.
    """
    if name_or_path.endswith(".toml"):
        return _load(Path(name_or_path).expanduser())
    return _load_named(find_file("recipes", name_or_path, f"known recipes: {', '.join(find_toml('recipes'))}"))


def list_recipes() -> list[Recipe]:
    """Every recipe that a name reaches, in the order of names."""
    return [_load_named(path) for path in find_toml("recipes").values()]


def _load_named(path: Path) -> Recipe:
    recipe = _load(path)
    admit("recipes", path, {})
    return recipe


def _load(path: Path) -> Recipe:
    return parse_table(Recipe, read_toml(path), path, given={"name": path.stem, "path": path})


def check_calibration(recipes: Sequence[Recipe], given: Path | None) -> None:
    """Raise ConfigError when text is given to recipes none of which looks at any, or when its file doesn't exist."""
    if given is not None and recipes:
        calibration_file(next((recipe for recipe in recipes if recipe.calibrated), recipes[0]), given)


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
    path = given or own or data_path("calibration.jsonl")
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such calibration file", 'one JSON object a line: {"text": "…"}, or plain text in a .txt'
        )
    return path.resolve()


def impossible(recipe: Recipe, provider: str, *, remote_code: bool = False) -> str | None:
    """The obstacle to building a recipe for a provider, or from a model with remote code; None when there is none."""
    if recipe.bits == 16 and provider == "cpu":
        return f"recipe '{recipe.name}': 16-bit floats are for GPU providers; the CPU's kernels want 32"
    if recipe.kv_cache_bits is not None and provider != "cpu":
        return f"recipe '{recipe.name}': an int8 KV cache is built for the CPU provider only"
    if remote_code and not _by_the_builder(recipe):
        return (
            f"recipe '{recipe.name}': Olive's quantizers don't know the layers of a model with remote code; "
            "the model builder rounds those itself, to 4 bits everywhere (rtn recipes)"
        )
    return None


def _by_the_builder(recipe: Recipe) -> bool:
    """Tell if the model builder can do all that a recipe asks for, without Olive's passes."""
    if not recipe.quantized:
        return True
    plain = recipe.mixed is None and recipe.head_bits is None and recipe.kv_cache_bits is None and not recipe.rotate
    return plain and recipe.algorithm == "rtn" and recipe.bits == 4
