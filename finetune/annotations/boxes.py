"""Boxes in pixels of the annotations: their image's size, IoU and targets.

Coordinates are continuous; the reference implementation adds one pixel to every side (docs/deviations.md).
"""

import numpy as np

from finetune.annotations.example import Example
from shards.common.box_iou import iou
from shards.common.errors import UserError
from shards.storage.sample import Sample

IOU_CORRECT = 0.5  # IoU with the ground-truth box from which a region is a target, and above which a box is correct
SAME_RATIO = 1.05  # factor between aspect ratios of an image and a smaller copy of it


def image_size(example: Example, sample: Sample) -> tuple[float, float]:
    """(width, height) of an example's image in pixels: from the annotations if they contain it, else from the shard.

    Raises:
        UserError: the two have different aspect ratios, for example because an image was rotated by its EXIF
            orientation after it had been annotated; boxes of one are then elsewhere in the other.
    """
    width, height = (float(example.facts.get(side) or sample.side(side)) for side in ("width", "height"))
    in_shard = sample.info.get("width", width), sample.info.get("height", height)
    ratio = width * in_shard[1] / (height * in_shard[0])
    if not 1 / SAME_RATIO < ratio < SAME_RATIO:
        raise UserError(
            f"{sample.shard}: {sample.key} was extracted from an image of {in_shard[0]} x {in_shard[1]} pixels, and "
            f"the annotations of example {example.id} have {width:.0f} x {height:.0f}; extract the image as annotated"
        )
    return width, height


def iou_with_box(boxes: np.ndarray, box) -> np.ndarray:
    """float64 (n,): the IoU of boxes (n, 4), x1 y1 x2 y2, with one box; 0 if either has no area."""
    box = np.asarray(box, np.float64).reshape(1, 4)
    return iou(np.asarray(boxes, np.float64).reshape(-1, 4), box)[:, 0]


def grounding_target(boxes: np.ndarray, box) -> np.ndarray:
    """float32 (n,): the IoU of boxes (n, 4) with the ground-truth box where it is at least 0.5, else 0.

    At least: the evaluation of most tasks is strict and the targets are not, as in the reference implementation.
    """
    overlap = iou_with_box(boxes, box)
    return np.where(overlap >= IOU_CORRECT, overlap, 0).astype(np.float32)
