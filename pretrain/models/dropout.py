"""Counter-based dropout: the mask is a pure function of (seed, epoch, sample, position, site, element).

It does not depend on a sample's rank, accumulation step or index in the batch, nor on how the model is executed (eager,
compiled, CUDA graph), and a resumed run has no generator to restore.
"""

import torch
from torch import Tensor, nn

import ops
from shards.common import counter_rng
from shards.common.random_purposes import SamplePurpose, sample_counter

TEXT, IMAGE, POOLED = range(3)  # kinds of positions in a sample


class Dropout(nn.Module):
    """Zeroes elements with probability p in training and scales the others by 1 / (1 - p).

    site: the number of the module in its model (see number_sites), so that modules have independent masks.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p, self.site = p, 0

    @property
    def rate(self) -> float:
        """The effective probability: p in training, 0 in evaluation."""
        return self.p if self.training else 0.0

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """x: (..., h); keys: int64, one per row of x."""
        if not self.rate:
            return x
        return ops.dropout(x.flatten(0, -2), keys.flatten(), self.site, self.rate).view(x.shape)

    def extra_repr(self) -> str:
        return f"p={self.p}, site={self.site}"


def number_sites(model: nn.Module) -> None:
    """Numbers the Dropout modules of a model in module order."""
    sites = [module for module in model.modules() if isinstance(module, Dropout)]
    for site, module in enumerate(sites):
        module.site = site


def position_keys(sample_keys: Tensor, kind: int, positions: Tensor) -> Tensor:
    """int64 (B, L): dropout keys of the positions int64 (L,) of one kind, from the sample keys int64 (B,)."""
    of_kind = counter_rng.draw(sample_keys, sample_counter(SamplePurpose.DROPOUT, kind))
    return counter_rng.draw(of_kind[:, None], positions)


def fresh_keys(size: int, device) -> Tensor:
    """int64 (size,) from torch's default generator, for training without sample keys."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (size,), device=device)
