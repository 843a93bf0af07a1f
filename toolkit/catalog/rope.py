"""Positions of a Phi-3 (RoPE), as config.json describes them: read, checked, and written so that every tool reads the
same.

Three spellings exist: `rope_scaling` of transformers 4, `rope_parameters` of transformers 5, and type `su`, which the
128k models had before it was called `longrope`. Tools differ in the keys that they look at, and in the defaults that
they take for missing ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ConfigError

# onnxruntime's attention refuses other widths of heads, and of their rotated parts, when it runs.
HEAD_MULTIPLE = 16
DEFAULT, LONG = "default", "longrope"
_FORMERLY = {"su": LONG}
_SCALING, _PARAMETERS = "rope_scaling", "rope_parameters"
_ORIGINAL, _THETA, _SHARE = "original_max_position_embeddings", "rope_theta", "partial_rotary_factor"
_FACTORS = ("short_factor", "long_factor")
# Settings that transformers and the model builder don't understand alike: one of them passes each over.
_DISPUTED = ("attention_factor", "short_mscale", "long_mscale")
_LARGEST_THETA, _CLOSE = 1e12, 1e-3


@dataclass(frozen=True)
class Rope:
    """Checked positions. `original_context` is in tokens; `rotary_dim` counts a head's rotated elements.

    The factors are LongRoPE's, one for each frequency (`rotary_dim / 2`), and empty for type `default`.
    """

    kind: str
    theta: float
    share: float
    rotary_dim: int
    original_context: int
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]


def parse_rope(
    config: Mapping[str, Any], max_context: int, head_dim: int, where: str, *, own_code: bool = False
) -> Rope:
    """Read the positions out of a config.json whose other numbers were checked.

    A model with `own_code` scales attention by settings that no other has.
    Raises ConfigError with the key and the edit for each type but `default`, `longrope` and `su`, for numbers that
    can't be right, and for a value that stands in two places and differs.
    """
    key, table = _table(config, where)
    kind = _kind(table, key, where)
    share = _number(_once(config, table, key, _SHARE, where), _SHARE, 1.0, where)
    if share > 1 or int(head_dim * share) % HEAD_MULTIPLE or int(head_dim * share) < 1:
        hint = f"the runtime rotates a multiple of {HEAD_MULTIPLE} of them; Phi-3 has 1.0 and Phi-4-mini 0.75"
        raise ConfigError(f"{where}: {_SHARE}: {share:g} of a head of {head_dim} elements can't be rotated", hint)
    theta = _number(_once(config, table, key, _THETA, where), _THETA, 10_000.0, where)
    rotary_dim, original = int(head_dim * share), _original(config, table, key, where)
    if kind == DEFAULT:
        return Rope(kind, theta, share, rotary_dim, max_context, (), ())
    original = 4096 if original is None else original
    if original >= max_context:
        raise ConfigError(
            f"{where}: {key}: type '{LONG}' stretches {original} positions ({_ORIGINAL}) to {max_context} "
            "(max_position_embeddings)",
            f'set "{_ORIGINAL}" to the context before the stretching, such as 4096, or "{key}" to null',
        )
    if not own_code:
        _refuse_disputed(table, key, max_context / original, where)
    short, long = (_factors(table.get(name), f"{key}.{name}", rotary_dim // 2, where) for name in _FACTORS)
    return Rope(kind, theta, share, rotary_dim, original, short, long)


def _table(config: Mapping[str, Any], where: str) -> tuple[str, Mapping[str, Any]]:
    """The table of positions and its key; an empty one if there is none."""
    found = {key: config[key] for key in (_SCALING, _PARAMETERS) if config.get(key) is not None}
    for key, table in found.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: {key}: not a table", f'take it from the model\'s page, or set "{key}" to null')
        if nested := [name for name, value in table.items() if isinstance(value, dict)]:
            message = f"{where}: {key}: a table for each kind of layer ({', '.join(map(str, nested))[:100]})"
            raise ConfigError(message, "no Phi-3 has these: take config.json from the model's page")
    if len(found) == 2 and _comparable(found[_SCALING]) != _comparable(found[_PARAMETERS]):
        message = f"{where}: {_SCALING} and {_PARAMETERS} contradict each other"
        raise ConfigError(message, "remove the one that is wrong")
    return next(iter(found.items()), (_SCALING, {}))


def _comparable(table: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in table.items() if name not in ("type", "rope_type", _THETA, _SHARE)}
    return rest | {"type": table.get("rope_type", table.get("type", DEFAULT))}


def _kind(table: Mapping[str, Any], key: str, where: str) -> str:
    names = [table[name] for name in ("rope_type", "type") if table.get(name) is not None]
    kinds = {_FORMERLY.get(name, name) if isinstance(name, str) else "" for name in names}
    if len(kinds) > 1:
        raise ConfigError(f"{where}: {key}: rope_type and type contradict each other", "remove the one that is wrong")
    kind = kinds.pop() if kinds else DEFAULT
    if kind not in (DEFAULT, LONG):
        shown = repr(names[0])[:80]
        raise ConfigError(
            f"{where}: {key}: type {shown} isn't supported",
            f"Phi-3 was trained with '{DEFAULT}' or '{LONG}' ('su' is its old name): if the weights were too, "
            "take config.json from the model's page; other types can't be built",
        )
    if kind == LONG or not any(name in table for name in _FACTORS):
        return kind
    hint = f'set "{key}": {{"type": "{LONG}", …}}, or remove the factors'
    raise ConfigError(f"{where}: {key}: short_factor and long_factor belong to type '{LONG}'", hint)


def _once(config: Mapping[str, Any], table: Mapping[str, Any], key: str, name: str, where: str) -> Any:
    """A value that may stand beside the table or in it; None if it stands nowhere."""
    found = [place[name] for place in (table, config) if place.get(name) is not None]
    if len(found) == 2 and found[0] != found[1]:
        message = f"{where}: {name} and {key}.{name} contradict each other"
        raise ConfigError(message, "remove the one that is wrong")
    return found[0] if found else None


def _original(config: Mapping[str, Any], table: Mapping[str, Any], key: str, where: str) -> int | None:
    value = _once(config, table, key, _ORIGINAL, where)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 24):
        return value
    raise ConfigError(f"{where}: {_ORIGINAL}: {str(value)[:40]!r} isn't a positive whole number", "Phi-3 has 4096")


def _number(value: Any, name: str, default: float, where: str) -> float:
    if value is None:
        return default
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LARGEST_THETA:
        return float(value)
    raise ConfigError(f"{where}: {name}: {str(value)[:40]!r} isn't a positive number", f"Phi-3 has {default:g}")


def _refuse_disputed(table: Mapping[str, Any], key: str, ratio: float, where: str) -> None:
    for name in _DISPUTED:
        if table.get(name) is not None:
            raise ConfigError(
                f"{where}: {key}.{name}: transformers and the model builder scale attention differently with it",
                "remove it, if the model was trained without; Phi-3's own scale follows from its contexts",
            )
    factor = table.get("factor")
    if factor is not None and (
        isinstance(factor, bool) or not isinstance(factor, int | float) or abs(factor - ratio) > _CLOSE * ratio
    ):
        raise ConfigError(
            f"{where}: {key}.factor: {str(factor)[:40]} contradicts max_position_embeddings / {_ORIGINAL} = {ratio:g}",
            "remove it: Phi-3's own scale follows from its contexts",
        )


def _factors(values: Any, name: str, count: int, where: str) -> tuple[float, ...]:
    hint = f"take config.json from the model's page: {name} has a number for each of {count} frequencies"
    if values is None:
        raise ConfigError(f"{where}: {name}: missing", hint)
    if not isinstance(values, list) or not all(map(_is_factor, values)):
        raise ConfigError(f"{where}: {name}: not a list of positive numbers", hint)
    if len(values) != count:
        raise ConfigError(f"{where}: {name}: {len(values)} values for {count} frequencies", hint)
    return tuple(map(float, values))


def _is_factor(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e6 and math.isfinite(value)


def written_out(config: Mapping[str, Any], rope: Rope) -> dict[str, Any]:
    """The config.json with its positions as transformers 4 wrote them, every value in the place that all tools read.

    The builder takes 1.0 for a `partial_rotary_factor` that stands in `rope_parameters` alone, and transformers 4096
    for a missing `original_max_position_embeddings`.
    """
    changed = {key: value for key, value in config.items() if key != _PARAMETERS}
    changed |= {_THETA: rope.theta, _ORIGINAL: rope.original_context, _SCALING: None}
    if rope.share != 1 or _SHARE in config:
        changed[_SHARE] = rope.share
    if rope.kind == LONG:
        factors = {"short_factor": list(rope.short_factor), "long_factor": list(rope.long_factor)}
        changed[_SCALING] = {"type": LONG, **factors}
    return changed
