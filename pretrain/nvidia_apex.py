"""NVIDIA apex's fused optimizers and LayerNorm, where it is installed. PyPI's package apex is another project."""

import importlib
import math

import torch
from torch import Tensor, nn

from shards.errors import UserError

HOW = "build NVIDIA's from its source (github.com/NVIDIA/apex) with its CUDA extensions"


def fused(kind: str, model: nn.Module, groups: list[dict], lr: float, betas, eps: float) -> torch.optim.Optimizer:
    """FusedAdam (kind: apex) or FusedLAMB (apex_lamb) on parameter groups; LayerNorm in `model` becomes apex's too."""
    try:
        _, optimizers, normalization = map(importlib.import_module, ("apex", "apex.optimizers", "apex.normalization"))
        _replace_norms(model, normalization.FusedLayerNorm)
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


def _replace_norms(model: nn.Module, fused_norm: type) -> None:
    """Every LayerNorm becomes apex's, of the same weights under the same names."""

    class Norm(fused_norm):
        """In the precision of its weights, as torch's is; under autocast apex would work in half of it."""

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, enabled=False):
                return super().forward(x.to(self.weight.dtype))

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                norm = Norm(child.normalized_shape, eps=child.eps)
                norm.weight, norm.bias = child.weight, child.bias
                setattr(module, name, norm)
