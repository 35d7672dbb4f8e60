"""NVIDIA apex's fused optimizers, where it is installed. PyPI's package apex is another project."""

import importlib
import math

import torch

from shards.errors import UserError

HOW = "build NVIDIA's from its source (github.com/NVIDIA/apex) with its CUDA extensions"


def fused(kind: str, groups: list[dict], lr: float, betas, eps: float) -> torch.optim.Optimizer:
    """FusedAdam (kind: apex) or FusedLAMB (apex_lamb) on parameter groups."""
    try:
        _, optimizers = map(importlib.import_module, ("apex", "apex.optimizers"))
        if kind == "apex_lamb":  # clipping is done before: its own is to begin nowhere
            return optimizers.FusedLAMB(groups, lr=lr, betas=betas, eps=eps, max_grad_norm=math.inf)
        return optimizers.FusedAdam(groups, lr=lr, betas=betas, eps=eps, adam_w_mode=True)
    except (ImportError, RuntimeError, AssertionError) as error:  # the last is torch's where it has no CUDA
        if isinstance(error, ImportError) and error.name == "apex":
            raise UserError(
                f"--optimizer {kind}: apex is not installed; {HOW}, or leave the flag out: torch's own fused AdamW is "
                "the default"
            ) from None
        raise UserError(
            f"--optimizer {kind}: the installed apex cannot be used here ({error}); it wants a GPU and its CUDA "
            f"extensions, and PyPI's package apex is another project: remove that and {HOW}"
        ) from None
