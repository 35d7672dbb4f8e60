"""Packed sequences: padding is removed before the layers, and hidden states are packed to (num_tokens, hidden)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ops.short_attention import MAX_LENGTH, runs_on

LEAST_PADDING = 1 / 8  # share of padding below which packing and unpacking cost more than they save


@dataclass(frozen=True)
class SequenceLayout:
    """Which positions of a batch of sequences are valid, and whether and how their hidden states are packed.

    Attributes:
        mask: bool (B, L), true for valid positions.
        index: int64 (num_tokens,), the flat positions of the packed states, which are (num_tokens, h); None if states
            are padded, (B, L, h), and pack and pad are no-ops.
        keys: int64 (B, L), dropout keys of the positions; None without dropout.
        row_keys: int64 (rows,), dropout keys of the packed or padded states; None without dropout.
        starts: int32 (B + 1,), the first row of each sequence, for attention on packed rows; None for attention on
            padded sequences.
    """

    mask: Tensor
    index: Tensor | None = None
    keys: Tensor | None = None
    row_keys: Tensor | None = None
    starts: Tensor | None = None

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, h) -> (num_tokens, h)."""
        return x if self.index is None else x.flatten(0, 1).index_select(0, self.index)

    def pad(self, x: Tensor) -> Tensor:
        """(num_tokens, h) -> (B, L, h), with zeros on padding."""
        if self.index is None:
            return x
        padded = x.new_zeros(self.mask.numel(), x.shape[-1])
        return padded.index_copy_(0, self.index, x).unflatten(0, self.mask.shape)


def lay_out(mask: Tensor, count: int | None, keys: Tensor | None = None) -> SequenceLayout:
    """Chooses the layout of sequences.

    Args:
        mask: bool (B, L).
        count: number of true elements of the mask, or a larger capacity, in which case the additional rows are padding
            that changes no result. Equality with mask.numel() means that all positions are valid. None if unknown:
            states stay padded.
        keys: int64 (B, L), see SequenceLayout.
    """
    on_rows = count is not None and mask.shape[1] <= MAX_LENGTH and runs_on(mask.device)
    full = count == mask.numel()
    if full or count is None or not (on_rows or count < (1 - LEAST_PADDING) * mask.numel()):
        index, row_keys = None, None if keys is None else keys.flatten()
    else:
        index = positions(mask, count)
        row_keys = None if keys is None else keys.flatten().index_select(0, index)
    if not on_rows:
        return SequenceLayout(mask, index, keys, row_keys)
    if row_keys is None:  # required by attention on rows, but not used without dropout
        row_keys = torch.zeros(mask.numel() if index is None else len(index), dtype=torch.int64, device=mask.device)
    return SequenceLayout(mask, index, keys, row_keys, _starts(mask, full))


def _starts(mask: Tensor, full: bool) -> Tensor:
    """int32 (B + 1,): the first packed row of each sequence. full: every position is valid."""
    size, length = mask.shape
    if full:
        return torch.arange(0, (size + 1) * length, length, dtype=torch.int32, device=mask.device)
    starts = torch.zeros(size + 1, dtype=torch.int32, device=mask.device)
    torch.cumsum(mask.sum(1), 0, dtype=torch.int32, out=starts[1:])
    return starts


def positions(mask: Tensor, count: int) -> Tensor:
    """int64 (count,): the flat indices of the true elements of a bool tensor, then of false ones, each in order.

    Unlike nonzero, this does not synchronise with the device.
    """
    return mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)[:count]
