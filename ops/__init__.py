"""Operators of the toolkit under the names by which everything above calls them."""

from ops.library import attention_dropout, dropout, dropout_add_layer_norm, mask_overlapping, mask_regions

__all__ = ["attention_dropout", "dropout", "dropout_add_layer_norm", "mask_overlapping", "mask_regions"]
