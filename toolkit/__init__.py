"""edgephi: quantize Phi-3 for an edge device, push it there, and measure it there."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

__version__ = "0.1.0"


def lazily(package: str, **modules: str) -> Callable[[str], object]:
    """The `__getattr__` of a package (PEP 562) whose modules give these names: `store="Bundle find_bundle"`.

    A module is imported when one of its names is first asked for: taking one name of a package loads no other module.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def __getattr__(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{package}.{homes[name]}"), name)
        return value

    return __getattr__
