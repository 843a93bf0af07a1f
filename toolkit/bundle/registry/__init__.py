"""Container registries, as far as bundles need them: HTTP over urllib3, and the layout that ORAS has
(docs/decisions/0016-registry.md). The package never pulls for a device: the agent does, with the host's credentials.
"""

from toolkit.bundle.registry.client import Registry
from toolkit.bundle.registry.http import Unreachable

__all__ = ["Registry", "Unreachable"]
