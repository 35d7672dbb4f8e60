"""Overlap masking in plain torch operations: which regions lie on a seed."""

import torch
from torch import Tensor


def mask_overlapping(boxes: Tensor, seeds: Tensor, valid: Tensor | None = None, threshold: float = 0.4) -> Tensor:
    """Every valid seed, and every valid region whose IoU with a valid seed is `threshold` or more.

    boxes: float (B, N, 4) as x1 y1 x2 y2; seeds, valid: bool (B, N), valid None for all; returns bool (B, N).
    Computed in float32 as intersection >= threshold * union, so an IoU that equals the threshold in exact
    arithmetic may fall on either side once boxes are rounded. Boxes without area, and boxes with a NaN,
    overlap nothing; they are masked where they are seeds themselves.
    """
    boxes = boxes.float()
    if valid is not None:
        seeds = seeds & valid
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = area[:, :, None] + area[:, None, :] - shared
    near = (shared > 0) & (shared >= threshold * union)
    hit = (near & seeds[:, None, :]).any(-1)
    if valid is not None:
        hit = hit & valid
    return hit | seeds
