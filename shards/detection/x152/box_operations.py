"""Boxes of the detector: anchors, decoding, IoU, non-maximum suppression, RoIAlign.

As in maskrcnn-benchmark, a box from x1 to x2 has the width x2 - x1 + 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDES = (4, 8, 16, 32, 64)
SIZES = (32, 64, 128, 256, 512)  # anchor sizes of each level
RATIOS = (0.5, 1.0, 2.0)  # height / width
LARGEST = math.log(1000 / 16)  # maximum logarithm of a change of size
CLASSES_AT_ONCE = 400  # classes per step of the suppression on a CPU, to fit the cache
SAMPLES = 2  # sampling points per cell and axis in RoIAlign


def anchors(size: int, stride: int, height: int, width: int, device=None) -> Tensor:
    """(height * width * 3, 4): anchors of a level, row by row."""
    base = torch.tensor([cell_anchor(stride, size, ratio) for ratio in RATIOS], device=device)
    y, x = torch.meshgrid(
        torch.arange(height, device=device) * stride, torch.arange(width, device=device) * stride, indexing="ij"
    )
    places = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (places + base).reshape(-1, 4)


def cell_anchor(stride: int, size: int, ratio: float) -> list[float]:
    """The anchor of the first cell: a window of stride x stride, reshaped to the ratio (rounded), then scaled."""
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
    """Decodes box deltas: boxes (..., 4) shifted and resized by deltas (..., 4)."""
    size = boxes[..., 2:] - boxes[..., :2] + 1
    centre = boxes[..., :2] + 0.5 * size + deltas[..., :2] * size
    half = 0.5 * size * deltas[..., 2:].clamp(max=LARGEST).exp()
    return torch.cat([centre - half, centre + half - 1], -1)


def inside(boxes: Tensor, width: float, height: float) -> Tensor:
    """Boxes (..., 4) clipped to an image."""
    limit = boxes.new_tensor([width - 1, height - 1] * 2)
    return torch.minimum(boxes.clamp(min=0), limit)


def overlapping_pairs(boxes: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """(j, i), int64 (P,) each: all pairs of boxes (N, 4) with an IoU above a threshold, sorted by i."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    area = size.prod(1)
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low + 1).clamp_(min=0).prod(-1)
    above = shared / (area[:, None] + area - shared) > threshold
    i, j = above.fill_diagonal_(False).nonzero(as_tuple=True)
    return j, i


def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression per class: bool (C, N), which boxes (N, 4) are kept given scores (C, N).

    A box is kept if no kept box with a higher score has an IoU above the threshold with it. For equal scores, the
    earlier box has priority. All classes are computed together: a box depends only on boxes with higher scores, so
    iterating the rule converges box by box, and ends when nothing changes.
    """
    pairs = overlapping_pairs(boxes, threshold)
    size = len(scores) if scores.is_cuda else CLASSES_AT_ONCE
    return torch.cat([_settled(part.T.contiguous(), *pairs).T for part in scores.split(max(1, size))])


def _settled(scores: Tensor, j: Tensor, i: Tensor) -> Tensor:
    """bool (N, C): which boxes are kept given scores (N, C), where box j (P,) can suppress box i (P,)."""
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
    """int64 (R,): the level, of the first four maps, from which a box is pooled."""
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    return torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-6)).clamp(2, 5).long() - 2


def roi_align_fpn(maps: list[Tensor], boxes: Tensor, images: Tensor, cells: int) -> Tensor:
    """RoIAlign of boxes (R, 4) in images int64 (R,), from four maps (B, C, H, W) -> (R, C * cells * cells).

    Without the half-pixel shift, with SAMPLES x SAMPLES points per cell. An output cell is a weighted sum of rows of a
    table with all positions of all maps, computed by an embedding bag.

    Changing it changes the features: increase the detector's `version` (shards/detectors/x152.py).
    """
    table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, level.shape[1]) for level in maps])
    shapes = torch.tensor([level.shape for level in maps], device=boxes.device)
    sizes = shapes[:, 0] * shapes[:, 2] * shapes[:, 3]
    begins = sizes.cumsum(0) - sizes  # first row of each map in the table
    level = levels_of(boxes)
    height, width = shapes[level, 2], shapes[level, 3]
    scaled = boxes / boxes.new_tensor(STRIDES)[level][:, None]
    begin = begins[level] + images * height * width  # first row of the box's image
    rows, row_weights = _along(scaled[:, 1], scaled[:, 3], height, cells)
    columns, column_weights = _along(scaled[:, 0], scaled[:, 2], width, cells)
    # (R, cells, 1, 2 * SAMPLES, 1) and (R, 1, cells, 1, 2 * SAMPLES): rows and columns of an output cell's samples
    row_begins = begin[:, None, None] + rows * width[:, None, None]
    places = row_begins[:, :, None, :, None] + columns[:, None, :, None, :]
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
