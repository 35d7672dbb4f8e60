"""The built-in detector: region proposals and hand-crafted features, without a neural network or weights.

Proposals come from two sources. Isolated outlines (connected edges with few edges around them) are taken first. The
other boxes are chosen from a fixed set of candidates of several sizes, aspect ratios and positions. A log-linear model
estimates the number of objects in a candidate from its contrast, edges, position and size, and boxes are chosen
greedily to maximise the expected number of objects covered by a box. With 36 regions, a region has on average 1.2
others with an IoU of at least 0.4 on photographs, and 1.3 on the miniature world (1.2 with its 24 regions). For
bottom-up-attention features of photographs it is also 1.2, so that overlap masking has a comparable effect. The
features of a box are fixed measurements of colour, shape and texture of its crop.
"""

import functools
from dataclasses import dataclass

import numpy as np
import scipy  # imports its parts when they are used; some take a second
from PIL import Image

from shards.common.box_iou import areas, iou

WORK_PIXELS = 256 * 256  # maximum image size for finding outlines
EDGE_STEPS = (12, 24)  # edge thresholds: differences between neighbouring pixels, of 255
LEAST_SIDE = 0.05  # minimum side of the box of an outline, relative to the image; smaller ones are noise
MARGIN, EDGES_AROUND = 0.1, 0.06  # an isolated outline has at most this share of edge pixels in a frame of this width
OUTLINE = 0.6  # minimum number of edge pixels of an outline, relative to the perimeter of its box
SAME = 0.5  # IoU from which two outlines are considered one object
OVERLAP = 0.7  # IoU from which a box is suppressed by one with a higher score
COVERED = (0.35, 0.7)  # IoU from which a box covers an object partly, and from which it covers it fully
CELLS = 64  # candidates are on a grid of CELLS x CELLS cells, whatever the image size
SIDES = (6, 12, 19, 31, 46, 64)  # sides of candidates, in cells
ASPECTS = (1 / 6, 4)  # minimum and maximum ratio of width to height of candidates, both relative to the image
STRIDE = 0.4  # distance between neighbouring candidates, relative to their side
FRAME = 0.2  # width of the frame around a candidate for its contrast, relative to its sides
STRONG_EDGE = 60  # differences between neighbouring pixels, of 255, are clipped to it
CROP = 32  # features are computed from crops of CROP x CROP pixels

# The log of the expected number of objects is BIAS plus these weights times the columns of `candidate_features`. Fitted
# by Poisson regression on training photographs of Flickr30k Entities, by `python benchmarks/fit_proposals.py`.
BIAS = -5.81
WEIGHTS = {
    "contrast": 5.16,
    "inside": 7.12,
    "around": -2.52,
    "along": 1.95,
    "across": -2.23,
    "x*x": -4.91,
    "y": 0.83,
    "w": 1.09,
    "h": 1.61,
    "w*w": -0.30,
    "h*h": -0.38,
    "w*h": 1.12,
}


def detect(image: np.ndarray, limit: int = 36) -> tuple[np.ndarray, np.ndarray]:
    """Proposes regions, deterministically.

    Args:
        image: uint8 (H, W, 3).
        limit: maximum number of regions, at least 1.

    Returns:
        Boxes float32 (N, 4) as x1 y1 x2 y2 in pixels and scores float32 (N,), in order of scores, 1 <= N <= limit. A
        score is the expected number of objects, at most 1, covered by the box but not by boxes with higher scores.
    """
    height, width = image.shape[:2]
    small, candidates = _shrink(image), _candidates()
    outlines = _outlines(small, max(1, limit // 3))
    rates = np.exp(candidate_features(small) @ np.array([*WEIGHTS.values()]) + BIAS)
    for share in _cover(iou(outlines, candidates.boxes)):
        rates *= 1 - share
    chosen, gains = _choose(candidates, rates, limit)
    boxes = np.concatenate([outlines, candidates.boxes[chosen]]) * [width, height, width, height]
    scores = np.concatenate([np.ones(len(outlines)), np.minimum(gains, 1)])
    boxes = _inside(boxes, width, height)
    best = _distinct(boxes, OVERLAP, limit)
    return boxes[best].astype(np.float32), scores[best].astype(np.float32)


def _shrink(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    share = min(1.0, (WORK_PIXELS / (height * width)) ** 0.5)
    if share == 1.0:
        return image
    return _resized(image, max(1, round(width * share)), max(1, round(height * share)))


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _steps(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int16 (H, W) each: the maximum difference over channels to the right and to the lower neighbour."""
    values = image.astype(np.int16)
    right, down = np.zeros((2, *image.shape[:2]), np.int16)
    right[:, :-1] = _largest(np.abs(np.diff(values, axis=1)))
    down[:-1] = _largest(np.abs(np.diff(values, axis=0)))
    return right, down


def _largest(channels: np.ndarray) -> np.ndarray:
    """Maximum over three channels (..., 3); numpy's max over a short axis is several times slower."""
    return np.maximum(np.maximum(channels[..., 0], channels[..., 1]), channels[..., 2])


def _outlines(image: np.ndarray, limit: int) -> np.ndarray:
    """Boxes (n, 4) of connected edges with few edges around them, relative to the image size, largest first."""
    size = np.array(image.shape[1::-1])
    least = np.maximum(3, LEAST_SIDE * size)
    steps = np.maximum(*_steps(image))
    found = [np.zeros((0, 4))]
    for step in EDGE_STEPS:
        mask = steps > step
        labels, _ = scipy.ndimage.label(mask, np.ones((3, 3)))
        slices = scipy.ndimage.find_objects(_without_specks(labels, least.max()))
        boxes = np.array([[x.start, y.start, x.stop, y.stop] for y, x in slices], int).reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        large = (sides >= least).all(1) & (sides.prod(1) <= 0.5 * size.prod())
        boxes, sides = boxes[large], sides[large]
        margin = np.maximum(2, np.rint(MARGIN * np.sqrt(sides.prod(1, keepdims=True)))).astype(int)
        frames = np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], 1).clip(0, [*size, *size])
        table = _integral(mask[..., None])
        inside, both = (_sums(table, _corners(x, mask.shape[1]))[:, 0] for x in (boxes, frames))
        around = (both - inside) / np.maximum(areas(frames) - areas(boxes), 1)
        isolated = (around <= EDGES_AROUND) & (inside > OUTLINE * 2 * sides.sum(1))
        found.append(boxes[isolated] + [1, 1, 0, 0])  # the edge of an object is at the pixel before its first one
    boxes = np.concatenate(found)
    boxes = boxes[np.argsort(-areas(boxes), kind="stable")]
    return boxes[_distinct(boxes, SAME, limit)] / [*size, *size]


def _without_specks(labels: np.ndarray, least: float) -> np.ndarray:
    """Removes labels with fewer than `least` pixels, of which a photograph has thousands, and renumbers the others."""
    stay = np.bincount(labels.ravel()) >= least
    stay[0] = False
    return np.where(stay, stay.cumsum(), 0).astype(np.int32).take(labels)


@dataclass(frozen=True)
class _Candidates:
    """Constants of the candidates, equal for every image. Corners are arguments of `_sums` for CELLS x CELLS cells.

    Attributes:
        boxes: float (M, 4), relative to the image size.
        corners, areas: of the boxes, (4, M) and (M, 1).
        frame_corners, frame_areas: of the boxes with a frame around them.
        side_corners, side_areas: of bands along the left, right, upper and lower side, (4, 4, M) and (4, M, 1).
        within: (4, M, 1), false for sides on the image border.
        geometry: (M, 7), columns of `candidate_features`.
        neighbours: (M + 1, K), numbers of the candidates that a candidate covers at least partly, padded with M.
        shares: (M + 1, K), degree to which it covers them.
    """

    boxes: np.ndarray
    corners: np.ndarray
    areas: np.ndarray
    frame_corners: np.ndarray
    frame_areas: np.ndarray
    side_corners: np.ndarray
    side_areas: np.ndarray
    within: np.ndarray
    geometry: np.ndarray
    neighbours: np.ndarray
    shares: np.ndarray


@functools.cache
def _candidates() -> _Candidates:
    cells = np.array(
        [
            (x, y, x + width, y + height)
            for width in SIDES
            for height in SIDES
            if ASPECTS[0] <= width / height <= ASPECTS[1]
            for y in _places(height)
            for x in _places(width)
        ]
    )
    sides = cells[:, 2:] - cells[:, :2]
    margin = np.maximum(1, np.rint(FRAME * sides)).astype(int)
    frames = np.concatenate([cells[:, :2] - margin, cells[:, 2:] + margin], 1).clip(0, CELLS)
    x1, y1, x2, y2 = cells.T
    bands = (x1 - 1, y1, x1 + 1, y2), (x2 - 1, y1, x2 + 1, y2), (x1, y1 - 1, x2, y1 + 1), (x1, y2 - 1, x2, y2 + 1)
    bands = [np.stack(band, 1).clip(0, CELLS) for band in bands]
    boxes = cells / CELLS
    cx, cy = ((boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5).T
    w, h = np.log(sides / CELLS).T
    return _Candidates(
        boxes,
        _corners(cells, CELLS),
        areas(cells)[:, None],
        _corners(frames, CELLS),
        areas(frames)[:, None],
        np.stack([_corners(band, CELLS) for band in bands], 1),
        np.stack([areas(band) for band in bands])[..., None],
        np.stack([x1 > 0, x2 < CELLS, y1 > 0, y2 < CELLS])[..., None],
        np.stack([cx**2, cy, w, h, w**2, h**2, w * h], 1),
        *_neighbours(boxes),
    )


def _places(side: int) -> np.ndarray:
    """Where candidates of a side begin, in cells."""
    return np.rint(np.linspace(0, CELLS - side, 1 + int(np.ceil((CELLS - side) / (STRIDE * side))))).astype(int)


def _neighbours(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count, covers = len(boxes), [_cover(iou(box[None], boxes))[0] for box in boxes]
    most = max(np.count_nonzero(cover) for cover in covers)
    neighbours, shares = np.full((count + 1, most), count), np.zeros((count + 1, most))
    for number, cover in enumerate(covers):
        (near,) = cover.nonzero()
        neighbours[number, : len(near)], shares[number, : len(near)] = near, cover[near]
    return neighbours, shares


def _cover(overlaps: np.ndarray) -> np.ndarray:
    """Degree, 0 to 1, to which a box covers an object, as a function of their IoU."""
    return ((overlaps - COVERED[0]) / (COVERED[1] - COVERED[0])).clip(0, 1)


def candidate_boxes() -> np.ndarray:
    """The candidate boxes (M, 4), relative to the image size."""
    return _candidates().boxes


def candidate_features(image: np.ndarray) -> np.ndarray:
    """Features (M, len(WEIGHTS)) of the candidates in an image, uint8 (H, W, 3).

    contrast: maximum over channels of the difference between the mean colours of the box and of a frame around it.
    inside, around: square root of the mean edge strength in the box and in the frame.
    along, across: the same in a band around each side, summed over the sides, for edges parallel to the side and for
    edges that cross it.
    x, y: centre of the box relative to that of the image; w, h: logarithms of width and height. All are relative to the
    image size.
    """
    known = _candidates()
    colours = _integral(_resized(image, CELLS, CELLS))
    steps = np.stack(_steps(_resized(image, 2 * CELLS, 2 * CELLS)), -1)
    edges = np.minimum(steps, STRONG_EDGE).reshape(CELLS, 2, CELLS, 2, 2).sum((1, 3)) / (4 * STRONG_EDGE)
    edges = _integral(edges)
    frame_areas = np.maximum(known.frame_areas - known.areas, 1)
    inner, outer = _sums(colours, known.corners), _sums(colours, known.frame_corners)
    contrast = _largest(np.abs(inner / known.areas - (outer - inner) / frame_areas)) / 255
    contrast[(known.frame_areas == known.areas)[:, 0]] = 0
    inner, outer = _sums(edges, known.corners), _sums(edges, known.frame_corners)
    inside, around = (np.sqrt(x.sum(1).clip(0)) for x in (inner / known.areas, (outer - inner) / frame_areas))
    bands = np.sqrt((_sums(edges, known.side_corners) / known.side_areas).clip(0)) * known.within
    along = bands[:2, :, 0].sum(0) + bands[2:, :, 1].sum(0)
    across = bands[:2, :, 1].sum(0) + bands[2:, :, 0].sum(0)
    return np.concatenate([np.stack([contrast, inside, around, along, across], 1), known.geometry], 1)


def _choose(candidates: _Candidates, rates: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses candidates greedily by the expected number of objects that previous ones do not cover.

    Args:
        rates: (M,), expected number of objects at each candidate.

    Returns:
        Numbers of at most `limit` candidates, and the expected number of objects that each adds, not increasing.
    """
    neighbours, shares = candidates.neighbours, candidates.shares
    rates = np.append(rates, 0)
    gain = (rates[neighbours] * shares).sum(1)
    chosen, gains = [], []
    while len(chosen) < limit and (best := int(gain.argmax())) < len(rates) - 1 and gain[best] > 0:
        chosen.append(best)
        gains.append(gain[best])
        near = neighbours[best]
        covered = rates[near] * shares[best]
        rates[near] -= covered
        gain -= np.bincount(neighbours[near].ravel(), (shares[near] * covered[:, None]).ravel(), len(rates))
        gain[near[shares[best] == 1]] = -np.inf
    return np.array(chosen, int), np.array(gains)


def _integral(image: np.ndarray) -> np.ndarray:
    """Integral image (H + 1, W + 1, C): sums of all pixels above and to the left.

    int32 of images that are uint8 and small enough for it, else float64. Both are exact, and int32 is faster.
    """
    small = image.dtype == np.uint8 and image[..., 0].size <= np.iinfo(np.int32).max // 255
    table = np.zeros((image.shape[0] + 1, image.shape[1] + 1, image.shape[2]), np.int32 if small else np.float64)
    np.cumsum(image, 0, table.dtype, table[1:, 1:])
    np.cumsum(table[1:, 1:], 1, out=table[1:, 1:])
    return table


def _corners(boxes: np.ndarray, width: int) -> np.ndarray:
    """(4, n): indices of the corners of boxes (n, 4), in whole pixels, in a flat integral image of this width."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([y2, y1, y2, y1]) * (width + 1) + np.stack([x2, x2, x1, x1])


def _sums(table: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Sums (..., C) of the pixels in boxes, by their `_corners` (4, ...)."""
    flat = table.reshape(-1, table.shape[2])
    lower_right, upper_right, lower_left, upper_left = (flat.take(corner, 0) for corner in corners)
    return lower_right - upper_right - lower_left + upper_left


def _at(table: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The integral image at fractional coordinates, by bilinear interpolation (exact, because pixels are constant)."""
    height, width, channels = table.shape
    y0 = np.minimum(y.astype(int), height - 2)
    x0 = np.minimum(x.astype(int), width - 2)
    fy, fx = (y - y0)[..., None], (x - x0)[..., None]
    flat, first = table.reshape(-1, channels), y0 * width + x0
    upper = flat.take(first, 0) * (1 - fx) + flat.take(first + 1, 0) * fx
    lower = flat.take(first + width, 0) * (1 - fx) + flat.take(first + width + 1, 0) * fx
    return upper * (1 - fy) + lower * fy


def _distinct(boxes: np.ndarray, overlap: float, limit: int) -> np.ndarray:
    """Non-maximum suppression of boxes in order of scores: indices of at most `limit` boxes."""
    close = iou(boxes, boxes) > overlap
    kept = []
    for i in range(len(boxes)):
        if not close[i, kept].any():
            kept.append(i)
            if len(kept) == limit:
                break
    return np.array(kept, int)


def _inside(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes clipped to the image, with sides of at least one pixel (half a pixel in a one-pixel image)."""
    limits = np.array([width, height], float)
    least = np.minimum(1.0, limits / 2)
    low = boxes[:, :2].clip(0, limits - least)
    high = np.maximum(boxes[:, 2:].clip(0, limits), low + least)
    return np.concatenate([low, high], 1)


def crop_features(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Features float32 (N, FEATURES) of boxes (N, 4) in pixels: colour, shape and texture of each crop.

    They include the size of a box but not its position, which the model gets as location. Changing them changes the
    features: increase the detector's `version` (shards/detectors/pixels.py).
    """
    height, width = image.shape[:2]
    boxes = _inside(np.asarray(boxes, float), width, height)
    crops = _crop(image, boxes) / 255
    grey = crops @ np.full(3, 1 / 3)
    border = np.concatenate([crops[:, 0], crops[:, -1], crops[:, 1:-1, 0], crops[:, 1:-1, -1]], 1)
    ground = np.median(border, 1)
    figure = _largest(np.abs(crops - ground[:, None, None])) > 0.12
    share = figure.mean((1, 2))[:, None]
    flat = crops.reshape(len(crops), -1, 3)
    painted = figure.reshape(len(crops), 1, -1).astype(float)
    colour = (painted @ flat)[:, 0] / np.maximum(painted.sum(2), 1)
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
        _spread(flat) * 4,
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
    corners = _at(table, y[:, :, None], x[:, None, :])
    sums = corners[:, 1:, 1:] - corners[:, :-1, 1:] - corners[:, 1:, :-1] + corners[:, :-1, :-1]
    return sums / (areas(boxes) / CROP**2)[:, None, None, None]


def _spread(values: np.ndarray) -> np.ndarray:
    """Standard deviations (N, C) of values (N, P, C) over P; numpy's are several times slower for few channels."""
    count = values.shape[1]
    centred = values - np.full((1, count), 1 / count) @ values
    return np.sqrt(np.einsum("npc,npc->nc", centred, centred) / count)


def _pool(values: np.ndarray, cells: int) -> np.ndarray:
    """Average pooling of (N, S, S, ...) to (N, cells, cells, ...)."""
    _n, side = values.shape[:2]
    width = side // cells
    rows = np.add.reduceat(values, np.arange(0, side, width), axis=1)
    return np.add.reduceat(rows, np.arange(0, side, width), axis=2) / width**2


def _counts(bins: np.ndarray, number: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Histograms (N, number) of integers (N, ...)."""
    n = len(bins)
    flat = (bins.reshape(n, -1) + np.arange(n)[:, None] * number).ravel()
    weights = None if weights is None else weights.ravel()
    return np.bincount(flat, weights, n * number).reshape(n, number)


def _colours(crops: np.ndarray) -> np.ndarray:
    """Shares (N, 64) of the crop in each of 4 x 4 x 4 colours."""
    levels = (crops * 4).astype(int).clip(0, 3)
    return _counts(levels[..., 0] * 16 + levels[..., 1] * 4 + levels[..., 2], 64) / CROP**2


def _orientations(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Histograms of gradient orientations (8 bins), weighted by magnitude: for 4 x 4 cells (N, 128), overall (N, 8)."""
    n, side = grey.shape[:2]
    dy, dx = np.gradient(grey, axis=(1, 2))
    strength = np.hypot(dx, dy)
    angle = np.arctan2(dy, dx)
    direction = (np.where(angle < 0, angle + np.pi, angle) / np.pi * 8).astype(int).clip(0, 7)
    direction[angle == np.pi] = 0
    row = np.arange(side) * 4 // side
    cell = row[:, None] * 4 + row[None, :]
    cells = _counts(cell[None] * 8 + direction, 128, strength)
    overall = cells.reshape(n, 16, 8).sum(1)
    return tuple(
        x / (np.linalg.norm(x, axis=1, keepdims=True) + 0.5) * scale for x, scale in ((cells, 4), (overall, 2))
    )


def _local_patterns(grey: np.ndarray) -> np.ndarray:
    """Shares (N, 9) of pixels by the number of their 8 neighbours that are brighter: flat, edge, corner, spot."""
    centre = grey[:, 1:-1, 1:-1] + 0.02
    side = grey.shape[1]
    brighter = sum(
        (grey[:, y : side - 2 + y, x : side - 2 + x] > centre).astype(np.uint8)
        for y in range(3)
        for x in range(3)
        if (y, x) != (1, 1)
    )
    return _counts(brighter, 9) / (side - 2) ** 2


FEATURES = 48 + 64 + 3 + 3 + 1 + 64 + 128 + 8 + 8 + 9 + 3 + 2 + 1
