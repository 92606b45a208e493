"""Fits a chip and torch's kernels to one run of `jaxlens measure`."""
