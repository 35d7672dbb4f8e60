"""Overlap masking in plain torch operations, for where no compiled operator is to be had."""

import torch
from torch import Tensor

ROWS = 64  # regions compared at a time: memory grows with N and not with N x N


def mask_overlapping(boxes: Tensor, seeds: Tensor, valid: Tensor | None, threshold: float) -> Tensor:
    """The same as the compiled operator, bit for bit: see ops.mask_overlapping."""
    boxes = boxes.float()
    seeds = seeds if valid is None else seeds & valid
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    hit = seeds.clone()
    for begin in range(0, boxes.shape[1], ROWS):
        part = slice(begin, begin + ROWS)
        low = torch.maximum(boxes[:, part, None, :2], boxes[:, None, :, :2])
        high = torch.minimum(boxes[:, part, None, 2:], boxes[:, None, :, 2:])
        sides = (high - low).clamp(min=0)
        shared = sides[..., 0] * sides[..., 1]
        union = (area[:, part, None] + area[:, None, :]) - shared
        near = (shared > 0) & (shared >= threshold * union)
        hit[:, part] |= (near & seeds[:, None, :]).any(-1)
    return hit if valid is None else hit & valid
