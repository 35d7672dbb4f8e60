"""Intersection over union of boxes."""

import numpy as np


def areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes (n, 4) and (m, 4)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    return shared / np.maximum(areas(boxes)[:, None] + areas(others)[None] - shared, 1e-9)
