"""Fused optimizers of NVIDIA apex, if it is installed. The PyPI package apex is a different project."""

import importlib
import math

import torch

from shards.common.errors import UserError

HOW = "build NVIDIA apex from source (github.com/NVIDIA/apex) with its CUDA extensions"


def fused_adam(groups: list[dict], lr: float, betas, eps: float, bias_correction: bool) -> torch.optim.Optimizer:
    """FusedAdam with decoupled weight decay."""
    return _made("apex", "FusedAdam", groups, lr, betas, eps, bias_correction, adam_w_mode=True)


def fused_lamb(groups: list[dict], lr: float, betas, eps: float, bias_correction: bool) -> torch.optim.Optimizer:
    """FusedLAMB without its own clipping of gradients: the engine clips them."""
    return _made("apex_lamb", "FusedLAMB", groups, lr, betas, eps, bias_correction, max_grad_norm=math.inf)


def _made(kind: str, name: str, groups: list[dict], lr: float, betas, eps: float, bias_correction: bool, **options):
    try:
        _, optimizers = map(importlib.import_module, ("apex", "apex.optimizers"))
        make = getattr(optimizers, name)
        return make(groups, lr=lr, betas=betas, eps=eps, bias_correction=bias_correction, **options)
    except (ImportError, RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        if isinstance(error, ImportError) and error.name == "apex":
            raise UserError(
                f"--optimizer {kind}: apex is not installed; {HOW}, or use --optimizer adamw, torch's fused AdamW"
            ) from None
        raise UserError(
            f"--optimizer {kind}: the installed apex cannot be used ({error}); it needs a GPU and its CUDA extensions; "
            f"the PyPI package apex is a different project: uninstall it and {HOW}"
        ) from None
