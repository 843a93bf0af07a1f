"""Sizes, rates, durations and percentages as people write them, and back.

Bytes, never bits: memory is sold and planned in bytes. Messages, events and tables show memory by `memory_text`, in
binary units as boards are sold. They show files, disks and transfers by `size_text` and `rate_text`, in decimal units
like data sheets and `scp`. The other functions give exact texts, which the parsers read back.
"""

from __future__ import annotations

import re
from fractions import Fraction

BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}

_DECIMAL = {unit: BYTES[unit] for unit in ("TB", "GB", "MB", "kB")}
_BINARY = {unit: BYTES[unit] for unit in ("GiB", "MiB", "KiB")}

COMPUTE = {"GOP/s": 10**9, "TOP/s": 10**12}

# The bound on the digits keeps a typing accident from becoming a number that no float holds.
_QUANTITY = re.compile(r"(-?)([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(.*)")
_BITS = re.compile(r"[kmgtKMGT]?i?(b|bit|bits)(ps|/s)?", re.ASCII)


def parse_bytes(text: str) -> int:
    """`8 GiB`, `512 MiB`, `2.5 GB` → bytes; KB/MB/GB/TB count in 1000s, KiB/MiB/GiB/TiB in 1024s.

    Raises ValueError that shows a correct example and says when a rate or bits were given.
    """
    number, unit = _split(text, example="8 GiB")
    if unit.endswith(("/s", "ps")):
        raise ValueError(f"'{text}' is a rate; a size is written like '8 GiB'")
    return round(number * _factor(text, unit, example="8 GiB"))


def parse_bandwidth(text: str) -> float:
    """`17 GB/s`, `1.5 GiB/s` → bytes per second.

    Raises ValueError that shows a correct example and says when a size or bits were given.
    """
    number, unit = _split(text, example="17 GB/s")
    if unit in BYTES:
        raise ValueError(f"'{text}' is a size; a rate is written like '17 GB/s'")
    if not unit.endswith("/s"):
        _refuse_bits(text, unit, example="17 GB/s")
        raise ValueError(f"'{text}' is not a rate; write it like '17 GB/s'")
    return float(number * _factor(text, unit.removesuffix("/s"), example="17 GB/s"))


def parse_rate(text: str) -> float:
    """Parse a rate to send at: as `parse_bandwidth`, but not zero."""
    rate = parse_bandwidth(text)
    if rate == 0:
        raise ValueError(f"'{text}' sends nothing at all; write it like '2 MB/s'")
    return rate


def memory_text(n_bytes: float) -> str:
    """An amount of memory with three significant digits: 7.89 GiB, 91.2 MiB."""
    return _worded(n_bytes, _BINARY)


def size_text(n_bytes: float) -> str:
    """The size of a file, a disk or a transfer, with three significant digits: 2.72 GB, 549 kB."""
    return _worded(n_bytes, _DECIMAL)


def rate_text(bytes_per_s: float) -> str:
    """The speed of a link or a disk with three significant digits: 11.2 MB/s."""
    return f"{size_text(bytes_per_s)}/s"


def bytes_text(n_bytes: int) -> str:
    """The shortest text that `parse_bytes` reads as exactly `n_bytes`."""
    exact = [f"{n_bytes // factor} {unit}" for unit, factor in BYTES.items() if n_bytes % factor == 0]
    return min(exact, key=lambda text: (len(text.split()[0]), len(text)))


def parse_compute(text: str) -> float:
    """`614 GOP/s`, `10 TOP/s` → operations per second. Raises ValueError that shows a correct example."""
    number, unit = _split(text, example="614 GOP/s")
    if unit not in COMPUTE:
        raise ValueError(f"'{text}' has an unknown unit '{unit}'; write it like '614 GOP/s' or '10 TOP/s'")
    return float(number * COMPUTE[unit])


def compute_text(ops_per_s: float) -> str:
    """A rate in GOP/s that `parse_compute` reads."""
    return f"{ops_per_s / 1e9:.12g} GOP/s"


def bandwidth_text(bytes_per_s: float) -> str:
    """A rate in GB/s that `parse_bandwidth` reads."""
    return f"{bytes_per_s / 1e9:.12g} GB/s"


SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


def parse_duration(text: str) -> float:
    """`90s`, `30m`, `1.5 h` → seconds. Raises ValueError that shows a correct example."""
    number, unit = _split(text, example="30m")
    if unit not in SECONDS:
        raise ValueError(f"'{text}' has an unknown unit '{unit}'; write it like '90s', '30m', '2h' or '7d'")
    if number == 0:
        raise ValueError(f"'{text}' is no time at all; write it like '30m'")
    return float(number * SECONDS[unit])


def parse_percent(text: str) -> float:
    """`3%`, `0.5 %` → a fraction: 0.03, 0.005. Raises ValueError that shows a correct example."""
    number, unit = _split(text, example="3%")
    if unit != "%":
        raise ValueError(f"'{text}' has an unknown unit '{unit}'; write it like '3%'")
    return float(number / 100)


def _worded(n_bytes: float, units: dict[str, int]) -> str:
    for unit, factor in units.items():
        # The figure is rounded first, so that nearly a gigabyte is 1 GB, not 1000 MB.
        if float(f"{n_bytes / factor:.3g}") >= 1:
            figure = n_bytes / factor
            return f"{figure:,.0f} {unit}" if figure >= 999.5 else f"{figure:.3g} {unit}"
    return f"{n_bytes:,.0f} B"


def _split(text: str, example: str) -> tuple[Fraction, str]:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a number with a unit; write it like '{example}'")
    sign, number, unit = match.groups()
    if sign:
        raise ValueError(f"'{text}' is negative; write it like '{example}'")
    if not unit:
        raise ValueError(f"'{text}' has no unit; write it like '{example}'")
    return Fraction(number), unit


def _factor(text: str, unit: str, example: str) -> int:
    if unit not in BYTES:
        _refuse_bits(text, unit, example)
        raise ValueError(f"'{text}' has an unknown unit '{unit}'; write it like '{example}'")
    return BYTES[unit]


def _refuse_bits(text: str, unit: str, example: str) -> None:
    # 'gb' in lower case may mean either; a factor of eight is too much to guess.
    if _BITS.fullmatch(unit):
        raise ValueError(f"'{text}' counts bits; bytes have a capital B, like '{example}'")
