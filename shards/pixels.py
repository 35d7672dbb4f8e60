"""The built-in detector: regions and their descriptors from pixels alone, no neural network and no weights.

Areas between edges, and the outlines that edges form, give objects. Around each of them parts, surroundings and
shifted boxes give the overlapping proposals that a neural detector gives, and what lies on a better box is
suppressed as it does: on the miniature world a region has 1.2 to 1.4 others that overlap it by an IoU of 0.4,
on the bottom-up-attention features of photographs 1.2, so that overlap masking has the same work to do. Each
box's crop is described by fixed measurements of colour, shape and texture.
"""

import zlib

import numpy as np
from PIL import Image
from scipy import ndimage

from shards import hashing

WORK_PIXELS = 256 * 256  # objects are looked for in a picture of at most this size
EDGE_STEPS = (10, 40)  # differences between neighbours, of 255, that count as an edge
MIN_SIDE = 3  # pixels; what is smaller is noise and not an object
ROUNDS = 9  # proposals around one object, the object's own box aside
SIZES = (0.3, 0.6), (0.7, 1.2), (1.4, 2.4)  # of proposals, as shares of the object's sides: parts, like it, around it
OVERLAP = 0.7  # IoU from which a box is suppressed by a better one
CROP = 32  # crops are described at CROP x CROP pixels


def detect(image: np.ndarray, limit: int = 36, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float32 (N, 4) as x1 y1 x2 y2 in pixels, and scores float32 (N,), best first; 1 <= N <= limit.

    image: uint8 (H, W, 3). The same image and seed give the same boxes.
    """
    height, width = image.shape[:2]
    small = _shrink(image)
    boxes, scores = _objects(small, max(1, limit // 2))
    ratio = np.array([width / small.shape[1], height / small.shape[0]] * 2)
    random_key = hashing.key(seed, zlib.crc32(np.ascontiguousarray(small)))
    boxes, scores = _propose(boxes * ratio, scores, width, height, random_key)
    order = np.argsort(-scores, kind="stable")
    best = order[_distinct(boxes[order], OVERLAP, limit)]
    return boxes[best].astype(np.float32), scores[best].astype(np.float32)


def _shrink(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    share = min(1.0, (WORK_PIXELS / (height * width)) ** 0.5)
    if share == 1.0:
        return image
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _edges(image: np.ndarray) -> np.ndarray:
    """int16 (H, W): the largest difference of any channel to the right and lower neighbour."""
    values = image.astype(np.int16)
    steps = np.zeros(image.shape[:2], np.int16)
    steps[:, :-1] = _largest(np.abs(np.diff(values, axis=1)))
    steps[:-1] = np.maximum(steps[:-1], _largest(np.abs(np.diff(values, axis=0))))
    return steps


def _largest(channels: np.ndarray) -> np.ndarray:
    """The largest of three channels (..., 3): numpy's own max over so short an axis is several times slower."""
    return np.maximum(np.maximum(channels[..., 0], channels[..., 1]), channels[..., 2])


def _objects(image: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) in pixels and scores (n,) of connected areas and outlines, best first, 1 <= n <= limit."""
    height, width = image.shape[:2]
    steps = _edges(image)
    found = [np.array([[0.0, 0.0, width, height]])]
    for step in EDGE_STEPS:
        for mask, structure in ((steps <= step, None), (steps > step, np.ones((3, 3)))):
            labels, _ = ndimage.label(mask, structure)
            slices = ndimage.find_objects(labels)
            found.append(np.array([[x.start, y.start, x.stop, y.stop] for y, x in slices], float).reshape(-1, 4))
    boxes = np.concatenate(found)
    large = (boxes[:, 2] - boxes[:, 0] >= MIN_SIDE) & (boxes[:, 3] - boxes[:, 1] >= MIN_SIDE)
    large[0] = True
    boxes = np.unique(boxes[large], axis=0)
    scores = _saliency(image, boxes)
    order = np.argsort(-scores, kind="stable")[: 8 * limit]
    kept = _distinct(boxes[order], 0.85, limit)
    return boxes[order][kept], scores[order][kept]


def _saliency(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How much each box differs from a frame around it, larger boxes counting somewhat more: (n,) above 0."""
    height, width = image.shape[:2]
    table = _integral(image)
    margin = 0.25 * np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1, keepdims=True)) + 1
    frame = np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], 1)
    frame = frame.clip(0, [width, height, width, height])
    inner, inner_area = _box_sums(table, boxes), _areas(boxes)[:, None]
    outer, outer_area = _box_sums(table, frame), _areas(frame)[:, None]
    around = (outer - inner) / np.maximum(outer_area - inner_area, 1)
    contrast = np.abs(inner / inner_area - around).max(1) / 255
    contrast[outer_area[:, 0] <= inner_area[:, 0]] = 0
    return (0.02 + contrast) * (_areas(boxes) / (height * width)) ** 0.25


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _integral(image: np.ndarray) -> np.ndarray:
    """float64 (H + 1, W + 1, 3): sums of all pixels above and to the left."""
    table = np.zeros((image.shape[0] + 1, image.shape[1] + 1, 3))
    table[1:, 1:] = image.cumsum(0, dtype=np.float64).cumsum(1)
    return table


def _at(table: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The integral table between its whole coordinates (pixels are squares of one colour, so this is exact)."""
    y0 = np.minimum(y.astype(int), table.shape[0] - 2)
    x0 = np.minimum(x.astype(int), table.shape[1] - 2)
    fy, fx = (y - y0)[..., None], (x - x0)[..., None]
    upper = table[y0, x0] * (1 - fx) + table[y0, x0 + 1] * fx
    lower = table[y0 + 1, x0] * (1 - fx) + table[y0 + 1, x0 + 1] * fx
    return upper * (1 - fy) + lower * fy


def _box_sums(table: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Sums of the pixels in boxes (n, 4): (n, 3)."""
    x1, y1, x2, y2 = boxes.T
    return _at(table, y2, x2) - _at(table, y1, x2) - _at(table, y2, x1) + _at(table, y1, x1)


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) overlaps."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    return shared / np.maximum(_areas(boxes)[:, None] + _areas(others)[None] - shared, 1e-9)


def _distinct(boxes: np.ndarray, overlap: float, limit: int) -> np.ndarray:
    """Indexes of the first boxes, best first, that lie on no better one: at most limit."""
    close = iou(boxes, boxes) > overlap
    kept = []
    for i in range(len(boxes)):
        if not close[i, kept].any():
            kept.append(i)
            if len(kept) == limit:
                break
    return np.array(kept, int)


def _propose(boxes, scores, width: int, height: int, random_key: int):
    """The objects' boxes and, around them, smaller, larger and shifted ones, each a little less sure."""
    all_boxes, all_scores = [boxes], [scores]
    for step in range(1, ROUNDS + 1):
        numbers = hashing.draw(np.int64(random_key), np.arange(step * 1000, step * 1000 + 4 * len(boxes)))
        u = (hashing.uniform24(numbers) / (1 << 24)).reshape(len(boxes), 4)
        low, high = SIZES[step % len(SIZES)]
        sides = boxes[:, 2:] - boxes[:, :2]
        size = sides * (low + (high - low) * u[:, :2])
        centre = (boxes[:, 2:] + boxes[:, :2]) / 2 + (u[:, 2:] - 0.5) * sides
        all_boxes.append(_inside(np.concatenate([centre - size / 2, centre + size / 2], 1), width, height))
        all_scores.append(scores * 0.9**step)
    return np.concatenate(all_boxes), np.concatenate(all_scores)


def _inside(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes cut to the image, none thinner than a pixel (or than half of a one-pixel image)."""
    limits = np.array([width, height], float)
    least = np.minimum(1.0, limits / 2)
    low = boxes[:, :2].clip(0, limits - least)
    high = np.maximum(boxes[:, 2:].clip(0, limits), low + least)
    return np.concatenate([low, high], 1)


def describe(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Descriptors float32 (N, FEATURES) of boxes (N, 4) in pixels: colour, shape and texture of each crop.

    Where the crop lies is not in it (the model gets boxes as locations); how large it is, is.
    """
    height, width = image.shape[:2]
    boxes = _inside(np.asarray(boxes, float), width, height)
    crops = _crop(image, boxes) / 255
    grey = crops @ np.full(3, 1 / 3)
    border = np.concatenate([crops[:, 0], crops[:, -1], crops[:, 1:-1, 0], crops[:, 1:-1, -1]], 1)
    ground = np.median(border, 1)
    figure = _largest(np.abs(crops - ground[:, None, None])) > 0.12
    share = figure.mean((1, 2))[:, None]
    colour = (crops * figure[..., None]).sum((1, 2)) / np.maximum(figure.sum((1, 2)), 1)[:, None]
    colour = np.where(share > 0, colour, ground)
    cells, overall = _orientations(grey)
    coarse = _orientations(_pool(grey, CROP // 2))[1]
    size = np.log2((boxes[:, 2:] - boxes[:, :2]) / [width, height])
    shape = size[:, :1] - size[:, 1:] + np.log2(width / height)
    parts = [
        _pool(crops, 4).reshape(len(crops), -1) * 2,
        np.sqrt(_colours(crops)) * 2,
        ground * 3,
        colour * 3,
        share * 3,
        _pool(figure.astype(float), 8).reshape(len(crops), -1),
        cells,
        overall,
        coarse,
        np.sqrt(_local_patterns(grey)),
        crops.reshape(len(crops), -1, 3).std(1) * 4,
        size / 2,
        shape / 2,
    ]
    return np.concatenate(parts, 1).astype(np.float32)


def _crop(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Crops (N, CROP, CROP, 3) by exact area averaging, whatever the size of the box."""
    table = _integral(image)
    steps = np.linspace(0, 1, CROP + 1)
    x = boxes[:, 0, None] + (boxes[:, 2] - boxes[:, 0])[:, None] * steps
    y = boxes[:, 1, None] + (boxes[:, 3] - boxes[:, 1])[:, None] * steps
    shape = (len(boxes), CROP + 1, CROP + 1)
    corners = _at(table, np.broadcast_to(y[:, :, None], shape), np.broadcast_to(x[:, None, :], shape))
    sums = corners[:, 1:, 1:] - corners[:, :-1, 1:] - corners[:, 1:, :-1] + corners[:, :-1, :-1]
    return sums / (_areas(boxes) / CROP**2)[:, None, None, None]


def _pool(values: np.ndarray, cells: int) -> np.ndarray:
    """(N, S, S, ...) averaged to (N, cells, cells, ...)."""
    _n, side = values.shape[:2]
    width = side // cells
    rows = np.add.reduceat(values, np.arange(0, side, width), axis=1)
    return np.add.reduceat(rows, np.arange(0, side, width), axis=2) / width**2


def _counts(bins: np.ndarray, number: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Histograms (N, number) of whole numbers (N, ...)."""
    n = len(bins)
    flat = (bins.reshape(n, -1) + np.arange(n)[:, None] * number).ravel()
    weights = None if weights is None else weights.ravel()
    return np.bincount(flat, weights, n * number).reshape(n, number)


def _colours(crops: np.ndarray) -> np.ndarray:
    """Shares (N, 64) of the crop in each of 4 x 4 x 4 colours."""
    levels = (crops * 4).astype(int).clip(0, 3)
    return _counts(levels[..., 0] * 16 + levels[..., 1] * 4 + levels[..., 2], 64) / CROP**2


def _orientations(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient directions (8 bins of half a turn), weighted by strength: of 4 x 4 cells (N, 128), overall (N, 8)."""
    n, side = grey.shape[:2]
    dy, dx = np.gradient(grey, axis=(1, 2))
    strength = np.hypot(dx, dy)
    direction = ((np.arctan2(dy, dx) % np.pi) / np.pi * 8).astype(int).clip(0, 7)
    row = np.arange(side) * 4 // side
    cell = row[:, None] * 4 + row[None, :]
    cells = _counts(cell[None] * 8 + direction, 128, strength)
    overall = cells.reshape(n, 16, 8).sum(1)
    return tuple(
        x / (np.linalg.norm(x, axis=1, keepdims=True) + 0.5) * scale for x, scale in ((cells, 4), (overall, 2))
    )


def _local_patterns(grey: np.ndarray) -> np.ndarray:
    """Shares (N, 9) of pixels by how many of their 8 neighbours are brighter: flat, edge, corner, spot."""
    centre = grey[:, 1:-1, 1:-1] + 0.02
    side = grey.shape[1]
    brighter = sum(
        (grey[:, y : side - 2 + y, x : side - 2 + x] > centre).astype(int)
        for y in range(3)
        for x in range(3)
        if (y, x) != (1, 1)
    )
    return _counts(brighter, 9) / (side - 2) ** 2


FEATURES = 48 + 64 + 3 + 3 + 1 + 64 + 128 + 8 + 8 + 9 + 3 + 2 + 1
