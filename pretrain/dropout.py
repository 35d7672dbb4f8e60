"""Counter-based dropout: what is dropped is a pure function of (seed, epoch, sample, position, site, element).

It does not depend on the rank, the accumulation step or the place in a batch that a sample has, nor on how the model is
run (eager, compiled, a CUDA graph), and a resumed run has no generator to restore.
"""

import torch
from torch import Tensor, nn

import ops
from shards import hashing

TEXT, IMAGE, POOLED = range(3)  # the kinds of positions that a sample has
CANDIDATES = 1 << 20  # the position of an image's first candidate: behind any number of regions
OTHER_BOXES = 1 << 21  # of the first given box that is no candidate: behind any number of candidates
_PURPOSE, _PURPOSES = 7, 8  # of a sample's key: pretrain.masking uses the others


class Dropout(nn.Module):
    """Zeroes elements with probability p in training and scales the others by 1 / (1 - p).

    site: the number of the module in its model (see number_sites), so that no two drop the same elements.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p, self.site = p, 0

    @property
    def rate(self) -> float:
        """The probability that is in force: 0 in evaluation."""
        return self.p if self.training else 0.0

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """x: (..., h); keys: int64, one for each row of h."""
        if not self.rate:
            return x
        return ops.dropout(x.flatten(0, -2), keys.flatten(), self.site, self.rate).view(x.shape)

    def extra_repr(self) -> str:
        return f"p={self.p}, site={self.site}"


def number_sites(model: nn.Module) -> None:
    """Numbers the dropouts of a model in the order of its modules."""
    sites = [module for module in model.modules() if isinstance(module, Dropout)]
    for site, module in enumerate(sites):
        module.site = site


def position_keys(sample_keys: Tensor, kind: int, positions: Tensor) -> Tensor:
    """int64 (B, L): dropout keys of positions (L,) of one kind, from the samples' keys int64 (B,)."""
    of_kind = hashing.draw(sample_keys, kind * _PURPOSES + _PURPOSE)
    return hashing.draw(of_kind[:, None], positions)


def fresh_keys(size: int, device) -> Tensor:
    """int64 (size,) from torch's own generator, for training without sample keys."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (size,), device=device)
