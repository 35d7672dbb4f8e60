"""Custom torch operators: compiled C++ and CUDA, Triton, or plain torch."""

from ops.own_packages import check_packages

check_packages()

from ops.column_sum import column_sum
from ops.registration import attention_dropout, dropout, dropout_add_layer_norm, mask_overlapping, mask_regions
from ops.short_attention import packed_cross_attention, packed_self_attention, short_attention

__all__ = [
    "attention_dropout",
    "column_sum",
    "dropout",
    "dropout_add_layer_norm",
    "mask_overlapping",
    "mask_regions",
    "packed_cross_attention",
    "packed_self_attention",
    "short_attention",
]
