"""Given boxes, used instead of detected ones: lines of {"image_id", "boxes": [[x1, y1, x2, y2], ...], "box_ids"}.

A line may also have "width" and "height" of the image that was annotated; its boxes are then scaled to the image file.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from shards.common.errors import UserError
from shards.common.image_id import image_id
from shards.common.untrusted_input import LARGEST_SIDE, byte_lines, check_pixels, is_number, parse_json, reading, shown

SAME_RATIO = 0.01  # relative difference between the aspect ratios of an image and a resized copy of it


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of an image, float32 (n, 4) in pixels, their ids, and their place in the file for messages.

    size: (width, height) of the image that was annotated, None if the file does not contain it.
    """

    boxes: np.ndarray
    ids: tuple[str, ...]
    where: str
    size: tuple[float, float] | None = None

    def inside(self, width: int, height: int) -> np.ndarray:
        """The boxes scaled and clipped to an image of this size, at least one pixel wide and high.

        Official annotations (COCO) have boxes with zero width or height, which can be candidates of a task.

        Raises:
            UserError: a box is outside the image, or the image that was annotated had another aspect ratio.
        """
        size = np.array([width, height] * 2, np.float32)
        boxes = self.boxes * self._scale(width, height)
        cut = np.clip(boxes, 0, size)
        flat = cut[:, 2:] <= cut[:, :2]  # in x, in y
        begins, ends = boxes[:, :2], boxes[:, 2:]
        outside = (begins > size[:2]) | (ends < 0) | (flat & (ends > begins))
        for box in boxes[outside.any(1)].tolist():
            raise UserError(f"{self.where}: box {box} lies outside its image, which is {width} x {height}")
        cut[:, :2] = np.where(flat, np.minimum(cut[:, :2], size[:2] - 1), cut[:, :2])
        cut[:, 2:] = np.where(flat, cut[:, :2] + 1, cut[:, 2:])
        return cut

    def _scale(self, width: int, height: int) -> np.ndarray:
        """float32 (4,): the factors from the image that was annotated to a copy of it with this size."""
        if self.size is None:
            return np.ones(4, np.float32)
        x, y = width / self.size[0], height / self.size[1]
        rounding = 1 / min(width, height, *self.size)  # of a side to whole pixels
        if abs(x - y) > max(SAME_RATIO, rounding) * max(x, y):
            annotated = " x ".join(f"{side:g}" for side in self.size)
            raise UserError(
                f"{self.where}: the image is {width} x {height} pixels and was annotated with {annotated}, another "
                "aspect ratio; extract the image as annotated"
            )
        return np.array([x, y] * 2, np.float32)

    @property
    def flat(self) -> int:
        """Number of boxes without area."""
        return int((self.boxes[:, 2:] <= self.boxes[:, :2]).any(1).sum())


@functools.lru_cache(maxsize=1)
def read_given_boxes(path: str) -> dict[str, ImageBoxes]:
    """Reads a file of JSON Lines: image id -> boxes."""
    found: dict[str, ImageBoxes] = {}
    lines = byte_lines(path)
    for number in itertools.count(1):
        where = f"{path}, line {number}"
        try:
            with reading(f"--boxes {path}", "it should be JSON Lines"):
                line = next(lines, None)
        except FileNotFoundError as error:
            raise UserError(f"--boxes {path}: cannot be read ({error.strerror})") from None
        if line is None:
            break
        with reading(where, "it should be an object with image_id, boxes and box_ids"):
            record = parse_json(line)
            image, boxes = image_id(str(record["image_id"])), np.array(record["boxes"], np.float32)
            ids = tuple(map(str, record["box_ids"]))
            size = record.get("width"), record.get("height")
        if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(ids) or not np.isfinite(boxes).all():
            raise UserError(
                f"{where}: should have boxes of four numbers and the same number of box_ids; it has {len(ids)} ids"
            )
        if (boxes[:, 2:] < boxes[:, :2]).any():
            raise UserError(f"{where}: has a box that ends before it begins; should be x1, y1, x2, y2")
        if image in found:
            raise UserError(f"{where}: duplicate image {image}; remove one of them")
        if size != (None, None) and not all(is_number(side, 1, LARGEST_SIDE) for side in size):
            raise UserError(f"{where}: width and height are {shown(size)}; should be those of the image in pixels")
        found[image] = ImageBoxes(boxes, ids, f"{where}, image {image}", None if None in size else size)
    if not found:
        raise UserError(f"--boxes {path}: is empty")
    check_pixels(np.concatenate([given.boxes for given in found.values()]), f"--boxes {path}: all boxes", "in pixels")
    return found
