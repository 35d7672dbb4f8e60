"""Packed sequences: padding is removed before the layers, and hidden states are packed to (num_tokens, hidden)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ops.short_attention import MAX_LENGTH, runs_on

LEAST_PADDING = 1 / 8  # of a batch's positions; with less, packing and padding again cost more than they save


@dataclass(frozen=True)
class Layout:
    """Which positions of a batch of sequences are valid, and where their hidden states are.

    mask: bool (B, L), true on valid positions; index: int64 (num_tokens,), where packed states come from in the
    flattened batch. With an index, states are packed, (num_tokens, h); with None they keep their padding, (B, L, h),
    and pack and pad change nothing. keys int64 (B, L) and row_keys (rows,): dropout keys of the positions, and of the
    states as they are laid out; None without dropout. starts: int32 (B + 1,), the first row of each sequence, where
    attention works on packed rows; None where it works on padded ones.
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


def lay_out(mask: Tensor, count: int | None, keys: Tensor | None = None) -> Layout:
    """The layout of sequences with this mask.

    count: how many places of the mask are true, or, where not all are, a larger number: the rows behind them are then
    padding, which changes no result (a capacity is more than mask.numel() where it leaves nothing out). None: unknown,
    and states keep their padding. keys: int64 (B, L), see Layout.
    """
    on_rows = count is not None and mask.shape[1] <= MAX_LENGTH and runs_on(mask.device)
    full = count == mask.numel()
    if full or count is None or not (on_rows or count < (1 - LEAST_PADDING) * mask.numel()):
        index, row_keys = None, None if keys is None else keys.flatten()
    else:
        index = positions(mask, count)
        row_keys = None if keys is None else keys.flatten().index_select(0, index)
    if not on_rows:
        return Layout(mask, index, keys, row_keys)
    if row_keys is None:  # attention on rows wants some, and uses none without dropout
        row_keys = torch.zeros(mask.numel() if index is None else len(index), dtype=torch.int64, device=mask.device)
    return Layout(mask, index, keys, row_keys, _starts(mask, full))


def _starts(mask: Tensor, full: bool) -> Tensor:
    """int32 (B + 1,): where each sequence begins among the packed rows. full: every position is valid."""
    size, length = mask.shape
    if full:
        return torch.arange(0, (size + 1) * length, length, dtype=torch.int32, device=mask.device)
    starts = torch.zeros(size + 1, dtype=torch.int32, device=mask.device)
    torch.cumsum(mask.sum(1), 0, dtype=torch.int32, out=starts[1:])
    return starts


def positions(mask: Tensor, count: int) -> Tensor:
    """int64 (count,): the flat indices of the true places of a bool tensor, then of others, in their order.

    The device is not asked how many there are.
    """
    return mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)[:count]
