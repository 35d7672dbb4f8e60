"""The positions of a padded batch one behind another, so that no layer that takes them singly works on padding."""

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_PADDING = 1 / 8  # of a batch's positions; with less, moving the rest to and fro costs more than it saves


@dataclass(frozen=True)
class Layout:
    """Which positions of a batch of sequences there are, and where their states lie.

    mask: bool (B, L), true on positions that are there; index: int64 (n,), their places in the flattened batch. With
    an index, states are packed, (n, h); with None they keep their padding, (B, L, h), and both methods change nothing.
    """

    mask: Tensor
    index: Tensor | None = None

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, h) -> (n, h)."""
        return x if self.index is None else x.flatten(0, 1).index_select(0, self.index)

    def pad(self, x: Tensor) -> Tensor:
        """(n, h) -> (B, L, h), with zeros where nothing is."""
        if self.index is None:
            return x
        padded = x.new_zeros(self.mask.numel(), x.shape[-1])
        return padded.index_copy(0, self.index, x).unflatten(0, self.mask.shape)


def lay_out(mask: Tensor, count: int | None) -> Layout:
    """How to lay out sequences with this mask. count: of its true places; None: unknown, and the padding stays."""
    if count is None or count >= (1 - LEAST_PADDING) * mask.numel():
        return Layout(mask)
    return Layout(mask, positions(mask, count))


def positions(mask: Tensor, count: int) -> Tensor:
    """Flat indexes int64 (count,) of the true places of a bool tensor, without asking the device how many."""
    return mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)[:count]
