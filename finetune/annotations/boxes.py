"""IoU of boxes in pixels, in continuous coordinates (no "+1")."""

import numpy as np


def iou_with_box(boxes: np.ndarray, box) -> np.ndarray:
    """float64 (n,): the IoU of boxes (n, 4), x1 y1 x2 y2, with one box; 0 if either has no area."""
    boxes, box = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(box, np.float64)
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    overlap = np.clip(high - low, 0, None).prod(1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1)
    union = areas + np.clip(box[2:] - box[:2], 0, None).prod() - overlap
    return np.divide(overlap, union, out=np.zeros(len(boxes)), where=(union > 0) & (overlap > 0))


def grounding_target(boxes: np.ndarray, box) -> np.ndarray:
    """float32 (n,): the IoU of boxes (n, 4) with the ground-truth box where it is at least 0.5, else 0."""
    overlap = iou_with_box(boxes, box)
    return np.where(overlap >= 0.5, overlap, 0).astype(np.float32)
