"""What a build leaves: the manifest, the store of bundles on this machine, signatures, lists of tensors.

`bundle.registry` keeps bundles elsewhere. Nothing here builds a bundle or brings it to a device.
"""
