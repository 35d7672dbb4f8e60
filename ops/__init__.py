"""Operators of the toolkit under the names by which everything above calls them."""

from ops.library import mask_overlapping, mask_regions

__all__ = ["mask_overlapping", "mask_regions"]
