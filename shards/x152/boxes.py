"""Boxes of the detector: anchors, decoding, overlaps, suppression, pooling.

Its code counts pixels as it was done of old: a box from x1 to x2 is x2 - x1 + 1 wide.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDES = (4, 8, 16, 32, 64)
SIZES = (32, 64, 128, 256, 512)  # of the anchors on each level
RATIOS = (0.5, 1.0, 2.0)  # height by width
LARGEST = math.log(1000 / 16)  # of the logarithm of a change of size
CLASSES_AT_ONCE = 400  # of a suppression on a processor: so many stay in its cache
SAMPLES = 2  # of a cell of a region, each way


def anchors(size: int, stride: int, height: int, width: int, device=None) -> Tensor:
    """(height * width * 3, 4): the anchors of a level, row by row."""
    base = torch.tensor([cell_anchor(stride, size, ratio) for ratio in RATIOS], device=device)
    y, x = torch.meshgrid(
        torch.arange(height, device=device) * stride, torch.arange(width, device=device) * stride, indexing="ij"
    )
    places = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (places + base).reshape(-1, 4)


def cell_anchor(stride: int, size: int, ratio: float) -> list[float]:
    """An anchor of the first place: a window of stride x stride, reshaped (and rounded), then scaled."""
    width = round(math.sqrt(stride * stride / ratio))
    height = round(width * ratio)
    width, height, centre = width * size / stride, height * size / stride, 0.5 * (stride - 1)
    return [
        centre - 0.5 * (width - 1),
        centre - 0.5 * (height - 1),
        centre + 0.5 * (width - 1),
        centre + 0.5 * (height - 1),
    ]


def moved(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (..., 4) moved and resized by deltas (..., 4)."""
    size = boxes[..., 2:] - boxes[..., :2] + 1
    centre = boxes[..., :2] + 0.5 * size + deltas[..., :2] * size
    half = 0.5 * size * deltas[..., 2:].clamp(max=LARGEST).exp()
    return torch.cat([centre - half, centre + half - 1], -1)


def inside(boxes: Tensor, width: float, height: float) -> Tensor:
    """Boxes (..., 4) cut to an image."""
    limit = boxes.new_tensor([width - 1, height - 1] * 2)
    return torch.minimum(boxes.clamp(min=0), limit)


def overlapping_pairs(boxes: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """(j, i) int64 (P,) each: all pairs of two of the boxes (N, 4) whose IoU is above a threshold, sorted by i."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    area = size.prod(1)
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low + 1).clamp_(min=0).prod(-1)
    above = shared / (area[:, None] + area - shared) > threshold
    i, j = above.fill_diagonal_(False).nonzero(as_tuple=True)
    return j, i


def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """bool (C, N): which boxes (N, 4) stay in each class by its scores (C, N): those that no better one that stays
    overlaps by an IoU above the threshold. Of equal scores the earlier box is the better.

    All classes at once: whether a box stays depends on the better ones alone, so that repeating "stays where no better
    one that stays overlaps it" settles box after box, and ends when nothing changes any more.
    """
    pairs = overlapping_pairs(boxes, threshold)
    size = len(scores) if scores.is_cuda else CLASSES_AT_ONCE
    return torch.cat([_settled(part.T.contiguous(), *pairs).T for part in scores.split(max(1, size))])


def _settled(scores: Tensor, j: Tensor, i: Tensor) -> Tensor:
    """bool (N, C): which boxes stay by scores (N, C), where box j (P,) may strike out box i (P,)."""
    better = scores[j] > scores[i]
    better |= (scores[j] == scores[i]) & (j < i)[:, None]
    stays = torch.ones_like(scores, dtype=torch.bool)
    while True:
        beaten = torch.zeros_like(scores, dtype=torch.float32).index_add_(0, i, (better & stays[j]).float())
        now = beaten == 0
        if torch.equal(now, stays):
            return stays
        stays = now


def levels_of(boxes: Tensor) -> Tensor:
    """int64 (R,): which of the first four maps a box is pooled from."""
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    return torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-6)).clamp(2, 5).long() - 2


def pool(maps: list[Tensor], boxes: Tensor, images: Tensor, cells: int) -> Tensor:
    """Regions boxes (R, 4) of images int64 (R,) from four maps (B, C, H, W) -> (R, C * cells * cells).

    RoIAlign without the half-pixel shift, SAMPLES x SAMPLES in a cell. A cell is a weighted sum of rows of one table
    that has every place of every map, which is what an embedding bag is.
    """
    table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, level.shape[1]) for level in maps])
    shapes = torch.tensor([level.shape for level in maps], device=boxes.device)
    begins = (shapes[:, 0] * shapes[:, 2] * shapes[:, 3]).cumsum(0) - shapes[:, 0] * shapes[:, 2] * shapes[:, 3]
    level = levels_of(boxes)
    height, width = shapes[level, 2], shapes[level, 3]
    scaled = boxes / boxes.new_tensor(STRIDES)[level][:, None]
    begin = begins[level] + images * height * width
    rows, row_weights = _along(scaled[:, 1], scaled[:, 3], height, cells)
    columns, column_weights = _along(scaled[:, 0], scaled[:, 2], width, cells)
    # (R, cells, 1, samples, 1) and (R, 1, cells, 1, samples), each sample as two neighbours
    places = (begin[:, None, None] + rows * width[:, None, None])[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :] / SAMPLES**2
    places, weights = (x.reshape(len(boxes) * cells * cells, -1) for x in (places, weights))
    pooled = F.embedding_bag(places, table, per_sample_weights=weights.to(table.dtype), mode="sum")
    return pooled.view(len(boxes), cells * cells, -1).transpose(1, 2).reshape(len(boxes), -1)


def _along(low: Tensor, high: Tensor, size: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """(places int64, weights), (R, cells, 2 * SAMPLES) each: the neighbours of a cell's samples along one side."""
    length = (high - low).clamp(min=1)
    steps = torch.arange(cells * SAMPLES, device=low.device, dtype=low.dtype)
    at = low[:, None] + (steps + 0.5) * (length / (cells * SAMPLES))[:, None]
    last = (size - 1)[:, None]
    known = (at >= -1) & (at <= size[:, None])
    at = at.clamp(min=0).minimum(last.to(at.dtype))
    before = at.floor().long()
    after = (before + 1).minimum(last)
    share = at - before
    places = torch.stack([before, after], -1)
    weights = torch.stack([(1 - share) * known, share * known], -1)
    return places.view(len(low), cells, -1), weights.view(len(low), cells, -1)
