"""Bundles, which a build leaves: the manifest, the store on this machine, signatures, lists of tensors;
`bundle.registry` keeps bundles elsewhere. The package never builds a bundle, and never brings one to a device.
"""
