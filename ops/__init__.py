"""Operators of the toolkit under the names by which everything above calls them."""

from ops.library import mask_overlapping, mask_regions
from ops.short_attention import packed_cross_attention, packed_self_attention, short_attention

__all__ = ["mask_overlapping", "mask_regions", "packed_cross_attention", "packed_self_attention", "short_attention"]
