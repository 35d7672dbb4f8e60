"""Fused optimizers of NVIDIA apex, if it is installed. The PyPI package apex is a different project."""

import importlib
import math

import torch

from shards.common.errors import UserError

HOW = "build NVIDIA apex from source (github.com/NVIDIA/apex) with its CUDA extensions"


def fused(kind: str, groups: list[dict], lr: float, betas, eps: float) -> torch.optim.Optimizer:
    """FusedAdam (kind: apex) or FusedLAMB (apex_lamb) on parameter groups."""
    try:
        _, optimizers = map(importlib.import_module, ("apex", "apex.optimizers"))
        if kind == "apex_lamb":  # the engine clips gradients, so FusedLAMB's own clipping is disabled
            return optimizers.FusedLAMB(groups, lr=lr, betas=betas, eps=eps, max_grad_norm=math.inf)
        return optimizers.FusedAdam(groups, lr=lr, betas=betas, eps=eps, adam_w_mode=True)
    except (ImportError, RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        if isinstance(error, ImportError) and error.name == "apex":
            raise UserError(
                f"--optimizer {kind}: apex is not installed; {HOW}, or use --optimizer adamw, torch's fused AdamW"
            ) from None
        raise UserError(
            f"--optimizer {kind}: the installed apex cannot be used ({error}); it needs a GPU and its CUDA extensions; "
            f"the PyPI package apex is a different project: uninstall it and {HOW}"
        ) from None
