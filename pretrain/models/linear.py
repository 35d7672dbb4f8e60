"""A linear layer whose mixed-precision backward pass makes fewer passes over GPU memory than torch's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops import column_sum


class Linear(nn.Linear):
    """nn.Linear that uses MixedLinear in training under autocast, if it has low-precision copies of its weights.

    narrow: low-precision copies of weight and bias (see NarrowWeights), or None.
    """

    narrow: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.narrow is not None and self.training and torch.is_autocast_enabled(x.device.type):
            return MixedLinear.apply(x, self.weight, self.bias, *self.narrow)
        return super().forward(x)


class NarrowWeights:
    """Copies of the weights of a model's linear layers in the autocast dtype.

    Autocast launches one kernel per weight to convert it; `refresh`, called at the start of a pass, launches one kernel
    for all.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        self.layers = [module for module in model.modules() if isinstance(module, Linear)]
        self.dtype = dtype
        self.weights: list[Tensor] = []

    @torch.no_grad()
    def refresh(self) -> None:
        if not self.weights:
            for layer in self.layers:
                layer.narrow = tuple(torch.empty_like(x, dtype=self.dtype) for x in (layer.weight, layer.bias))
            self.weights = [x for layer in self.layers for x in (layer.weight, layer.bias)]
        torch._foreach_copy_([x for layer in self.layers for x in layer.narrow], self.weights)


class MixedLinear(torch.autograd.Function):
    """x Wᵀ + b in a 16-bit dtype, with float32 gradients of W and b.

    The gradient of W is written directly in float32, where autograd would round it to 16 bits and convert it back. The
    gradient of b is computed by a custom kernel.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, narrow_weight: Tensor, narrow_bias: Tensor) -> Tensor:
        x = x.to(narrow_weight.dtype)
        ctx.save_for_backward(x, narrow_weight)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, narrow_weight, narrow_bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_x = (rows @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        of_weight = _float32_product(rows.T, x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, column_sum(rows) if ctx.needs_input_grad[2] else None, None, None


def _float32_product(a: Tensor, b: Tensor) -> Tensor:
    """The product a b of 16-bit matrices, in float32."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
