"""Container registries, as far as bundles need them; the standard library's HTTP (docs/decisions/0016-registry.md)."""

from toolkit.bundle.registry.client import Registry
from toolkit.bundle.registry.http import Unreachable

__all__ = ["Registry", "Unreachable"]
