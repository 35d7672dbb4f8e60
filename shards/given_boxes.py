"""Boxes that are given, not detected: lines of {"image_id", "boxes": [[x1, y1, x2, y2], ...], "box_ids"}, in pixels."""

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from shards.errors import UserError
from shards.image_id import image_id
from shards.reading import byte_lines, parse_json, reading


@dataclass(frozen=True)
class GivenBoxes:
    """One image's boxes, float32 (n, 4) in pixels, and their ids."""

    boxes: np.ndarray
    ids: tuple[str, ...]
    where: str

    def inside(self, width: int, height: int) -> np.ndarray:
        """The boxes cut to an image of this size, of which a pixel at least is left; a box outside is a UserError.

        Official annotations have boxes without width or height (COCO's do), which a task may choose among.
        """
        size = np.array([width, height] * 2, np.float32)
        cut = np.clip(self.boxes, 0, size)
        flat = cut[:, 2:] <= cut[:, :2]  # in x, in y
        begins, ends = self.boxes[:, :2], self.boxes[:, 2:]
        outside = (begins > size[:2]) | (ends < 0) | (flat & (ends > begins))
        for box in self.boxes[outside.any(1)].tolist():
            raise UserError(f"{self.where}: box {box} lies outside its image, which is {width} x {height}")
        cut[:, :2] = np.where(flat, np.minimum(cut[:, :2], size[:2] - 1), cut[:, :2])
        cut[:, 2:] = np.where(flat, cut[:, :2] + 1, cut[:, 2:])
        return cut

    @property
    def flat(self) -> int:
        """How many boxes have no area."""
        return int((self.boxes[:, 2:] <= self.boxes[:, :2]).any(1).sum())


@functools.lru_cache(maxsize=1)
def read_given_boxes(path: str) -> dict[str, GivenBoxes]:
    """Image id -> its boxes, from a file of JSON lines."""
    found: dict[str, GivenBoxes] = {}
    lines = byte_lines(path)
    for number in itertools.count(1):
        where = f"{path}, line {number}"
        try:
            with reading(f"--boxes {path}", "it should be lines of JSON"):
                line = next(lines, None)
        except FileNotFoundError as error:
            raise UserError(f"--boxes {path}: cannot be read ({error.strerror})") from None
        if line is None:
            break
        with reading(where, "it should be an object with image_id, boxes and box_ids"):
            record = parse_json(line)
            image, boxes = image_id(str(record["image_id"])), np.array(record["boxes"], np.float32)
            ids = tuple(map(str, record["box_ids"]))
        if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(ids) or not np.isfinite(boxes).all():
            raise UserError(f"{where}: should have boxes of four numbers and as many box_ids; it has {len(ids)} ids")
        if (boxes[:, 2:] < boxes[:, :2]).any():
            raise UserError(f"{where}: has a box that ends before it begins; should be x1, y1, x2, y2")
        if image in found:
            raise UserError(f"{where}: image {image} stands there twice")
        found[image] = GivenBoxes(boxes, ids, where)
    if not found:
        raise UserError(f"--boxes {path}: is empty")
    if all((given.boxes <= 1).all() for given in found.values()):
        raise UserError(f"--boxes {path}: all boxes lie between 0 and 1; should be in pixels, not shares of the image")
    return found
