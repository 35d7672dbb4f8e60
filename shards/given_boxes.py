"""Boxes that are given, not detected: lines of {"image_id", "boxes": [[x1, y1, x2, y2], ...], "box_ids"}, in pixels."""

import functools
import json
from dataclasses import dataclass

import numpy as np

from shards.errors import UserError
from shards.image_id import image_id


@dataclass(frozen=True)
class GivenBoxes:
    """One image's boxes, float32 (n, 4) in pixels, and their ids."""

    boxes: np.ndarray
    ids: tuple[str, ...]
    where: str

    def inside(self, width: int, height: int) -> np.ndarray:
        """The boxes cut to an image of this size; one of which nothing is left is a UserError."""
        size = np.array([width, height] * 2, np.float32)
        cut = np.clip(self.boxes, 0, size)
        for box, (x1, y1, x2, y2) in zip(self.boxes.tolist(), cut.tolist(), strict=True):
            if x2 <= x1 or y2 <= y1:
                raise UserError(f"{self.where}: box {box} lies outside its image, which is {width} x {height}")
        return cut


@functools.lru_cache(maxsize=1)
def read_given_boxes(path: str) -> dict[str, GivenBoxes]:
    """Image id -> its boxes, from a file of JSON lines."""
    found: dict[str, GivenBoxes] = {}
    try:
        lines = open(path, encoding="utf-8").read().splitlines()  # noqa: SIM115  read to its end at once
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--boxes {path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
            image, boxes = image_id(str(record["image_id"])), np.array(record["boxes"], np.float32)
            ids = tuple(map(str, record["box_ids"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: should be an object with image_id, boxes and box_ids ({error})") from None
        if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(ids) or not np.isfinite(boxes).all():
            raise UserError(f"{where}: should have boxes of four numbers and as many box_ids; it has {len(ids)} ids")
        if image in found:
            raise UserError(f"{where}: image {image} stands there twice")
        found[image] = GivenBoxes(boxes, ids, where)
    if not found:
        raise UserError(f"--boxes {path}: is empty")
    return found
