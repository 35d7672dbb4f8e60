"""The input of the image stream."""

import torch
from torch import Tensor

import ops


def image_stream_input(
    features: Tensor, boxes: Tensor, visible: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """The input of the image stream: features (B, N + 1, D) and locations (B, N + 1, 5), of type `dtype`.

    Row 0 is the image token: the mean of the visible regions (zeros if there are none). Regions that are not visible
    are zeroed. ops.mask_regions does both in one pass over the features: ops/pure_torch.py has it in plain torch, and
    ops/csrc/regions_cpu.cpp and regions_cuda.cu compute the same.

    Args:
        features: (B, N, D), any floating-point dtype.
        boxes: (B, N, 4), relative to width and height.
        visible: bool (B, N).
    """
    size, regions = visible.shape
    locations = boxes.new_empty(size, regions + 1, 5, dtype=torch.float32)
    locations[:, 0, :2] = 0.0
    locations[:, 0, 2:] = 1.0
    locations[:, 1:, :4] = boxes
    locations[:, 1:, 4] = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return ops.mask_regions(features, visible, dtype), locations.to(dtype)
