"""Operators of the toolkit under the names by which everything above calls them."""

from ops.library import mask_overlapping

__all__ = ["mask_overlapping"]
