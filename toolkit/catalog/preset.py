"""Published Phi-3 shapes, so that a model of any size can be synthesized, planned and tested offline.

Each is a file of `toolkit/data/presets`: the model's config.json as the hub has it, and the facts that edgephi adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import Field

from toolkit.catalog.record import OpenRecord, Record
from toolkit.catalog.shape import ModelShape, parse_shape
from toolkit.catalog.toml import parse_table
from toolkit.config import data_path, shown
from toolkit.errors import ConfigError
from toolkit.untrusted import read_json_file, reason

V = TypeVar("V")

# The longest published lists of factors take 3 KiB.
_LARGEST_BYTES = 64 << 10
# The tokenizer of a synthesized model, and its end of a text, are made of these tokens.
_NEEDED_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")


@dataclass(frozen=True)
class Preset:
    """One model's shape. Sizes count elements, contexts count tokens; `hub_id` is None for our own shapes.

    `short_factor` and `long_factor` are LongRoPE's lists, one value per rotary frequency (`rotary_dim / 2`), or empty.
    `token_ids` maps the added tokens to their ids. `published` is the config.json of the shape with all its layers.
    `stand_in` names the test shape that has all peculiarities of a published one at a size that builds in seconds.
    """

    name: str
    hub_id: str | None
    stand_in: str | None
    architecture: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    context_length: int
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    tied_embeddings: bool
    partial_rotary_factor: float
    token_ids: Mapping[str, int]
    published: Mapping[str, Any]

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def rotary_dim(self) -> int:
        """The number of a head's elements that are rotated; the others carry no position."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def qkv_width(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def parameters(self) -> int:
        """Weights and biases, counting a tied head once."""
        matrices = self.hidden_size * (self.qkv_width + self.hidden_size + 3 * self.intermediate_size)
        vectors, final = 2 * self.hidden_size, self.hidden_size
        if self.architecture == "Phi3SmallForCausalLM":  # LayerNorm and every projection have biases
            vectors = 2 * vectors + self.qkv_width + 2 * self.hidden_size + 2 * self.intermediate_size
            final = 2 * final
        tables = (1 if self.tied_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.layers * (matrices + vectors) + final + tables

    def cut(self, layers: int | None) -> Preset:
        """The same shape with only the first ``layers`` layers; all of them for None.

        Raises ConfigError when there aren't that many.
        """
        if layers is None:
            return self
        if not 1 <= layers <= self.layers:
            raise ConfigError(
                f"{self.name} can't be cut to {layers} layers",
                f"choose between 1 and {self.layers}",
            )
        return replace(self, layers=layers)

    def config(self) -> dict[str, object]:
        """The model's ``config.json``."""
        return deepcopy(dict(self.published)) | {"num_hidden_layers": self.layers}


class _Own(Record):
    """The part of a preset that edgephi adds to a published config.json."""

    hub_id: str | None
    position: int = Field(ge=0)
    stand_in: str | None
    note: str
    token_ids: dict[str, int]


class _PresetFile(Record):
    preset: _Own
    config: dict[str, Any]


class _Scaling(OpenRecord):
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]


class _Positions(OpenRecord):
    """Positions as a config.json describes them, beyond the numbers of `ModelShape`."""

    rope_scaling: _Scaling | None = None
    partial_rotary_factor: float = Field(default=1.0, gt=0, le=1)


def read_preset(path: Path) -> tuple[int, Preset]:
    """The preset that a file describes, and its position among the others; its name is the file's.

    Raises ConfigError, which names the file, when it can't be read, is longer than 64 KiB, or describes no possible
    Phi-3.
    """
    where = shown(path)
    try:
        value = read_json_file(path, _LARGEST_BYTES)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{where}: not a preset: {reason(exc)}") from exc
    content = parse_table(_PresetFile, value, path)
    positions = parse_table(_Positions, content.config, f"{where}: config")
    preset = _preset(path.stem, content, parse_shape(content.config, where), positions)
    if problem := _problem(preset):
        raise ConfigError(f"{where}: {problem}")
    return content.preset.position, preset


def _preset(name: str, content: _PresetFile, shape: ModelShape, positions: _Positions) -> Preset:
    scaling = positions.rope_scaling
    return Preset(
        name=name,
        hub_id=content.preset.hub_id,
        stand_in=content.preset.stand_in,
        architecture=shape.architecture,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        context_length=shape.max_context,
        short_factor=scaling.short_factor if scaling else (),
        long_factor=scaling.long_factor if scaling else (),
        tied_embeddings=shape.tied_embeddings,
        partial_rotary_factor=positions.partial_rotary_factor,
        token_ids=content.preset.token_ids,
        published=content.config,
    )


def _problem(preset: Preset) -> str | None:
    """The mistake in a preset that would make a model synthesized from it fail; None when there is none."""
    if missing := [token for token in _NEEDED_TOKENS if token not in preset.token_ids]:
        return f"preset.token_ids: missing: {', '.join(missing)}"
    if not all(0 <= number < preset.vocab_size for number in preset.token_ids.values()):
        return f"preset.token_ids: an id outside the vocabulary of {preset.vocab_size}"
    for key, values in {"short_factor": preset.short_factor, "long_factor": preset.long_factor}.items():
        if preset.published.get("rope_scaling") and len(values) != preset.rotary_dim // 2:
            return f"config.rope_scaling.{key}: {len(values)} values for {preset.rotary_dim // 2} frequencies"
    return None


class _OnDemand(Mapping[str, V], Generic[V]):
    """A mapping that is read when it is first looked at: importing this module reads no file."""

    def __init__(self, read: Callable[[], Mapping[str, V]]) -> None:
        self._read = read

    @cached_property
    def _content(self) -> Mapping[str, V]:
        return self._read()

    def __getitem__(self, key: str) -> V:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def _read_all() -> dict[str, Preset]:
    found = [read_preset(path) for path in data_path("presets").glob("*.json")]
    return {preset.name: preset for _, preset in sorted(found, key=lambda item: item[0])}


PRESETS: Mapping[str, Preset] = _OnDemand(_read_all)
# Published architecture -> its test shape.
STAND_INS: Mapping[str, str] = _OnDemand(
    lambda: {preset.name: preset.stand_in for preset in PRESETS.values() if preset.stand_in}
)


def preset(name: str) -> Preset:
    """The preset called ``name``; ConfigError if there is none."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"no preset is called {name!r}", f"choose one of {', '.join(PRESETS)}") from None
