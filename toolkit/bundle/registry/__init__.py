"""Container registries, as far as bundles need them: HTTP over urllib3, and the layout that ORAS has
(docs/decisions/0016-registry.md). The package never pulls for a device: the agent does, with the host's credentials.
"""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.bundle.registry.client import Registry as Registry
    from toolkit.bundle.registry.http import Unreachable as Unreachable
    from toolkit.bundle.registry.layout import BlobSource as BlobSource, Place as Place, parse_place as parse_place

__getattr__ = lazily(__name__, client="Registry", http="Unreachable", layout="BlobSource Place parse_place")
