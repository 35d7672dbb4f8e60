"""Column sums of a tall matrix, for the gradient of a bias. Triton on a GPU, plain torch elsewhere.

torch's own reduction reached a third of an H100's memory bandwidth at the model's shapes (benchmarks/records).
"""

import torch
from torch import Tensor

from ops.registration import NAMESPACE
from ops.short_attention import runs_on


def column_sum(x: Tensor) -> Tensor:
    """The sums of the columns, in float32, in an order that depends only on the shape.

    Args:
        x: float32, float16 or bfloat16 (n, h), last dimension contiguous.

    Returns:
        float32 (h,), without a gradient.

    Raises:
        ValueError: for other shapes or dtypes.
    """
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"x should be floating point (n, h) and is {x.dtype} {tuple(x.shape)}")
    return torch.ops.twelve_in_one.column_sum(x)


def _plain(x: Tensor) -> Tensor:
    return x.sum(0, dtype=torch.float32)


def _on_gpu(x: Tensor) -> Tensor:
    if not runs_on(x.device) or x.dtype == torch.float64:
        return _plain(x)
    from ops.column_sum_kernels import column_sum as kernel

    return kernel(x)


_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define("column_sum(Tensor x) -> Tensor")
_library.impl("column_sum", _plain, "CPU")
_library.impl("column_sum", _on_gpu, "CUDA")
torch.library.register_fake(
    f"{NAMESPACE}::column_sum", lambda x: x.new_empty(x.shape[1], dtype=torch.float32), lib=_library
)
