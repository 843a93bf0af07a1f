"""The memory and disk that a build takes on this machine, and a check that they are there before the work starts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from toolkit import localhost
from toolkit.catalog import ModelShape, Recipe
from toolkit.errors import ConfigError, HostDiskFull
from toolkit.events import Service, Warning_
from toolkit.metrics.footprint import footprint
from toolkit.units import memory_text, size_text

# Peak of the build's private memory, fitted to builds watched through `RssAnon` (pages of mapped weights don't count:
# they are dropped when memory is short): importing Olive, torch and the exporter; the quantized matrices, once whole,
# once in part; the token table, in floats in every copy.
_IMPORTS_BYTES = 450_000_000
_MATRIX_COPIES, _TABLE_COPIES = 1.6, 2.6
# Unquantized, the exporter holds all weights.
_PLAIN_COPIES = 1.2
# A rotation holds the whole model in floats, and more while it works; GPTQ and calibrating a KV cache run the model.
_ROTATE_BYTES_PER_PARAMETER = 5.5
_RUN_BYTES_PER_PARAMETER = 2.3
# On disk: the quantized checkpoint, the exported model in Olive's cache, and its copy in the output folder.
_QUANTIZED_FILES, _PLAIN_FILES = 3, 2
_SPARE_DISK_BYTES = 100_000_000
_LESS_MEMORY = "close other programs, add swap, or build on a larger machine; --force tries anyway"
_LESS_DISK = "free some space, or set EDGEPHI_CACHE_DIR to another disk; --force tries anyway"


@dataclass(frozen=True)
class HostNeeds:
    """Peak memory and disk of a build, in bytes; the original model's own files are there already."""

    ram_bytes: int
    disk_bytes: int


def host_needs(shape: ModelShape, recipe: Recipe, provider: str) -> HostNeeds:
    """The needs of building `shape` by `recipe` on this machine."""
    bundle = footprint(shape, recipe, provider).bundle_bytes
    table = shape.embedding_parameters * 4
    if recipe.quantized:
        ram = _MATRIX_COPIES * max(0, bundle - table) + _TABLE_COPIES * table
    else:
        ram = _PLAIN_COPIES * bundle
    if recipe.calibration is not None:
        ram = max(ram, _RUN_BYTES_PER_PARAMETER * shape.parameters)
    if recipe.rotate:
        ram = max(ram, _ROTATE_BYTES_PER_PARAMETER * shape.parameters)
    disk = (_QUANTIZED_FILES if recipe.quantized else _PLAIN_FILES) * bundle
    # The rotated model, in 16 bits.
    disk += 2 * shape.parameters if recipe.rotate else 0
    return HostNeeds(round(_IMPORTS_BYTES + ram), disk + _SPARE_DISK_BYTES)


def check_host(needs: HostNeeds, what: str, work: Path, *, force: bool) -> Service[None]:
    """Refuse a build that needs more memory or disk than this machine has; with `force` only warn.

    `work` is the folder that the build writes to; it may not exist yet. Raises ConfigError and HostDiskFull.
    """
    found = localhost.available_memory()
    if found is not None and found.total_bytes < needs.ram_bytes:
        message = (
            f"building {what} needs about {memory_text(needs.ram_bytes)} of memory on this machine; "
            f"{memory_text(found.total_bytes)} are free{' under its memory limit' if found.limited else ''}"
        )
        if not force:
            raise ConfigError(message, _LESS_MEMORY)
        yield Warning_(message)
    free = free_disk_bytes(work)
    if free < needs.disk_bytes:
        message = f"building {what} writes up to {size_text(needs.disk_bytes)} below {work}; {size_text(free)} are free"
        if not force:
            raise HostDiskFull(message, _LESS_DISK)
        yield Warning_(message)


def free_disk_bytes(folder: Path) -> int:
    """The free bytes of the disk where a folder lies or will lie."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
