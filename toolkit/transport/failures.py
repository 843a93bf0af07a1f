"""Words for what transports have in common when they fail."""

from __future__ import annotations

from toolkit.errors import DeviceFull


def device_full(where: str, needs_bytes: int, free_bytes: int | None, folder: str) -> DeviceFull:
    """The error for a disk without room; `free_bytes` is None where the device can't tell."""
    free = "no space left" if free_bytes is None else f"{_size(free_bytes)} free"
    return DeviceFull(
        f"{where}: disk full: needs {_size(needs_bytes)}, {free} on {folder}",
        "remove old releases there, or set install_root to a folder on a larger disk",
    )


def _size(n_bytes: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes} B"
