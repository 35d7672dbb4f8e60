"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from finetune.annotations.boxes import IOU_CORRECT, iou_with_box
from finetune.annotations.example import Box, Example
from finetune.annotations.official_files import by_id, corners, find_file, read_pickled_list, scan_list, take, unique
from finetune.annotations.source_files import once
from finetune.heads.grounding_head import GroundingHead
from finetune.task_types.base import AnnotatedImage, GivenBoxes, Task
from shards.common.errors import UserError
from shards.common.untrusted_input import check_pixels

INSTANCES = "instances.json"
MARGIN = 2  # pixels by which a box may begin or end outside of its image, because of rounding
ACCEPTED = 0.01  # share of the boxes that may be further outside


class Instance(msgspec.Struct):
    """The fields of an annotated instance."""

    id: int
    image_id: int
    bbox: list[float]


class Image(msgspec.Struct):
    """The fields of an image record. Images of expressions have a size."""

    id: int
    width: int | None = None
    height: int | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        return (self.width, self.height) if self.width and self.height else None


@dataclass(frozen=True)
class ReferringExpressions(GivenBoxes, Task):
    """Predictions: boxes (n, 4) in pixels; a box is correct if its IoU with the ground-truth box is above 0.5.

    files: the official pickle of expressions, and the file of the annotated instances that it refers to.
    """

    def given_boxes(self, folder: Path) -> dict[str, AnnotatedImage]:
        """Image -> all annotated instances, by annotation id."""
        found: dict[str, AnnotatedImage] = {}
        boxes, images = instances(find_file(folder, INSTANCES))
        for annotation, (image, box) in boxes.items():
            size = images[image].size if image in images else None
            found.setdefault(str(image), AnnotatedImage({}, size)).boxes[str(annotation)] = box
        return found

    def image_counts(self, folder: Path, split: str) -> Counter[tuple[str, ...]]:
        counts: Counter[tuple[str, ...]] = Counter()
        for where, record in self._records(folder, split):
            counts[str(take(record, "image_id", int, where)),] += len(take(record, "sentences", list, where))
        return counts

    def _records(self, folder: Path, split: str) -> Iterator[tuple[str, dict]]:
        """(location for messages, record) of the pickle's records of a split."""
        path = find_file(folder, self.files[0])
        for number, record in enumerate(_references(path)):
            where = f"{path}, record {number}"
            if take(record, "split", str, where) == split:
                yield where, record

    def examples(self, folder: Path, split: str) -> list[Example]:
        path, known_file = find_file(folder, self.files[0]), find_file(folder, INSTANCES)
        boxes, sizes = instances(known_file)
        examples = []
        for where, record in self._records(folder, split):
            box, image = take(record, "ann_id", int, where), take(record, "image_id", int, where)
            for wanted, known, what in ((box, boxes, "annotation"), (image, sizes, "image")):
                if wanted not in known:
                    raise UserError(f"{where}: {what} {wanted} is not in {known_file}")
            size = {"width": sizes[image].width, "height": sizes[image].height}
            if None in size.values():
                raise UserError(f"{known_file}, image {image}: has no width or no height; download the file again")
            for sentence in take(record, "sentences", list, where):
                text = take(sentence, "raw" if "raw" in sentence else "sent", str, where)
                examples.append(
                    Example(take(sentence, "sent_id", int, where), text, (str(image),), boxes[box][1], facts=size)
                )
        unique((example.id for example in examples), str(path))
        return examples

    def scores(self, examples: Sequence[Example], predictions: np.ndarray) -> dict[str, np.ndarray]:
        """Accuracy. The evaluation is strict and the targets are not, as in the reference implementation."""
        ious = [iou_with_box(box, example.target)[0] for example, box in zip(examples, predictions, strict=True)]
        return {"accuracy": np.array([float(iou > IOU_CORRECT) for iou in ious])}

    def submission(self, examples: Sequence[Example], predictions: np.ndarray) -> str:
        """A JSON list of the predicted boxes, x y width height; there is no official server."""
        return json.dumps(
            [
                {"sent_id": example.id, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                for example, (x1, y1, x2, y2) in zip(examples, np.asarray(predictions).tolist(), strict=True)
            ]
        )


@once
def instances(path: Path) -> tuple[dict[int, tuple[int, Box]], dict[int, Image]]:
    """(annotation id -> (image id, box), image id -> its record), from the file of instances."""
    boxes = by_id(
        (where, record.id, (record.image_id, corners(record.bbox, "bbox", where)))
        for where, record in scan_list(path, "annotations", "annotation", Instance)
    )
    images = by_id((where, image.id, image) for where, image in scan_list(path, "images", "image", Image))
    _check_units(path, boxes, images)
    return boxes, images


def _check_units(path: Path, boxes: dict[int, tuple[int, Box]], images: dict[int, Image]) -> None:
    """Raises UserError for boxes that are not x, y, width, height in pixels: no prediction would be correct.

    A few boxes that begin or end outside of their images are accepted.
    """
    form = "x, y, width, height in pixels of the image"
    sized = [(box, images[image]) for image, box in boxes.values() if image in images and images[image].width]
    values = np.array([box for box, _ in sized]).reshape(-1, 4)
    check_pixels(values, f"{path}: all boxes", form)
    begins, ends = values[:, :2], values[:, 2:]
    sizes = np.array([(image.width, image.height or np.inf) for _, image in sized]).reshape(-1, 2)
    outside = int(((begins < -MARGIN) | (ends > sizes + MARGIN)).any(1).sum())
    if outside > len(sized) * ACCEPTED:
        wrong = f"{outside} of {len(sized)} boxes begin or end outside of their images"
        raise UserError(f"{path}: {wrong}; they should be {form}")


@once
def _references(path: Path) -> list:
    return read_pickled_list(path)


_SETTINGS = {"group": "G3", "head": GroundingHead(), "max_tokens": 20, "batch_size": 256, "lr": 2e-5, "images": "coco"}
_UNC = {"splits": ("train", "val", "testA", "testB"), "tests": ("testA", "testB"), "files": ("refs(unc).p", INSTANCES)}
_UMD = {"splits": ("train", "val", "test"), "tests": ("test",), "files": ("refs(umd).p", INSTANCES)}

TASKS = (
    ReferringExpressions(name="refcoco", title="RefCOCO", token=9, **_UNC, **_SETTINGS),
    ReferringExpressions(name="refcoco+", title="RefCOCO+", token=10, **_UNC, **_SETTINGS),
    ReferringExpressions(name="refcocog", title="RefCOCOg", token=11, **_UMD, **_SETTINGS),
)
