"""RoIAlign to one vector per box, and boxes of a grid."""

import numpy as np
import torch
from torch import Tensor

SAMPLES = 2  # sampling points per cell of the map along each side of a box


def roi_align(feature_map: Tensor, boxes: Tensor) -> Tensor:
    """The mean of a feature map over each box, by RoIAlign (Mask R-CNN, section 3) with one output cell.

    The map is interpolated bilinearly at SAMPLES points per cell along each side (rounded up, so at least SAMPLES x
    SAMPLES points in a box), with the half-pixel shift: cell i of the map has its centre at i + 0.5. The points of a
    box form a grid, so the weight of a cell is the product of a row weight and a column weight, and one matrix product
    computes all boxes. For a box that covers the whole map this is global average pooling.

    Changing it changes the features: increase the detector's `version` (shards/detectors/backbone.py).

    Args:
        feature_map: (C, H, W).
        boxes: (N, 4), x1 y1 x2 y2 in cells of the map, from 0 to W or H.

    Returns:
        (N, C) float32.
    """
    channels, height, width = feature_map.shape
    rows = _weights(boxes[:, 1], boxes[:, 3], height)
    columns = _weights(boxes[:, 0], boxes[:, 2], width)
    weights = (rows[:, :, None] * columns[:, None, :]).view(len(boxes), height * width)
    with torch.autocast(feature_map.device.type, enabled=False):
        return weights @ feature_map.float().view(channels, height * width).T


def _weights(low: Tensor, high: Tensor, size: int) -> Tensor:
    """(N, size): weight of each row (or column) of the map in the mean over boxes from low to high, (N,) each."""
    length = (high - low).float()
    count = (length.ceil().clamp(min=1) * SAMPLES)[:, None]
    steps = torch.arange(int(count.max()) if len(count) else 0, device=low.device)
    at = (low[:, None] + (steps + 0.5) * length[:, None] / count - 0.5).clamp(0, size - 1)
    near = (1 - (at[..., None] - torch.arange(size, device=low.device)).abs()).clamp(min=0)
    return (near * (steps < count)[..., None]).sum(1) / count


def grid_boxes(height: int, width: int, cells: int) -> np.ndarray:
    """float32 (cells * cells, 4): boxes of a grid on an image of this size in pixels, row by row."""
    x, y = (np.linspace(0, size, cells + 1, dtype=np.float32) for size in (width, height))
    left, top = np.meshgrid(x[:-1], y[:-1])
    right, bottom = np.meshgrid(x[1:], y[1:])
    return np.stack([left, top, right, bottom], -1).reshape(-1, 4)
