"""The operators in plain torch operations, for where no compiled ones are to be had."""

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


def mask_regions(features: Tensor, visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The same as the compiled operator but for the order in which row 0 is summed: see ops.mask_regions."""
    size, regions, width = features.shape
    rows = features.new_empty(size, regions + 1, width, dtype=torch.float32)
    rows[:, 1:] = features.masked_fill(~visible[..., None], 0)
    torch.sum(rows[:, 1:], 1, out=rows[:, 0])
    rows[:, 0] /= visible.sum(1, keepdim=True).clamp(min=1)
    return rows.to(dtype)
