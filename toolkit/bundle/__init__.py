"""Bundles, which a build leaves: the manifest, the store on this machine, signatures, lists of tensors;
`bundle.registry` keeps bundles elsewhere. The package never builds a bundle, and never brings one to a device.
"""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.bundle.blocks import Block as Block
    from toolkit.bundle.manifest import (
        Artifact as Artifact,
        Manifest as Manifest,
        canonical_json as canonical_json,
        describe_file as describe_file,
    )
    from toolkit.bundle.store import (
        Bundle as Bundle,
        find_bundle as find_bundle,
        list_bundles as list_bundles,
        open_bundle as open_bundle,
        verify_bundle as verify_bundle,
    )

__getattr__ = lazily(
    __name__,
    manifest="Artifact Manifest canonical_json describe_file",
    store="Bundle find_bundle list_bundles open_bundle verify_bundle",
    blocks="Block",
)
