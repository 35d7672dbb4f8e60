"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.annotations.boxes import iou
from finetune.annotations.example import Box, Example
from finetune.annotations.official_files import find_file, read_annotations, read_pickled_list, take, take_box, unique
from finetune.heads.grounding_head import GroundingHead
from finetune.task_types.base import GivenBoxes, Task
from shards.common.errors import UserError

INSTANCES = "instances.json"


@dataclass(frozen=True)
class ReferringExpressions(GivenBoxes, Task):
    """Predictions: boxes (n, 4) in pixels; a box is correct if its IoU with the ground-truth box is above 0.5.

    files: the official pickle of expressions, and the file of the annotated instances that it refers to.
    """

    def instances(self, folder: Path) -> tuple[dict[int, tuple[int, Box]], dict[int, dict]]:
        """(annotation id -> (image id, box), image id -> its record), from the file of instances."""
        path = find_file(folder, INSTANCES)
        known = read_annotations(path)
        boxes = {}
        for number, record in enumerate(take(known, "annotations", list, str(path))):
            where = f"{path}, annotation {number}"
            boxes[take(record, "id", int, where)] = (
                take(record, "image_id", int, where),
                take_box(record, "bbox", where),
            )
        images = enumerate(take(known, "images", list, str(path)))
        return boxes, {take(record, "id", int, f"{path}, image {number}"): record for number, record in images}

    def given_boxes(self, folder: Path) -> dict[str, dict[str, Box]]:
        """Image -> {annotation id: box}, for all annotated instances."""
        found: dict[str, dict[str, Box]] = {}
        for annotation, (image, box) in self.instances(folder)[0].items():
            found.setdefault(str(image), {})[str(annotation)] = box
        return found

    def image_counts(self, folder: Path, split: str) -> Counter[tuple[str, ...]]:
        counts: Counter[tuple[str, ...]] = Counter()
        for where, record in self._records(folder, split):
            counts[str(take(record, "image_id", int, where)),] += len(take(record, "sentences", list, where))
        return counts

    def _records(self, folder: Path, split: str) -> Iterator[tuple[str, dict]]:
        """(location for messages, record) of the pickle's records of a split."""
        path = find_file(folder, self.files[0])
        for number, record in enumerate(read_pickled_list(path)):
            where = f"{path}, record {number}"
            if take(record, "split", str, where) == split:
                yield where, record

    def examples(self, folder: Path, split: str) -> list[Example]:
        path, instances = find_file(folder, self.files[0]), find_file(folder, INSTANCES)
        boxes, sizes = self.instances(folder)
        examples = []
        for where, record in self._records(folder, split):
            box, image = take(record, "ann_id", int, where), take(record, "image_id", int, where)
            for wanted, known, what in ((box, boxes, "annotation"), (image, sizes, "image")):
                if wanted not in known:
                    raise UserError(f"{where}: {what} {wanted} is not in {instances}")
            size = {side: take(sizes[image], side, int, f"{instances}, image {image}") for side in ("width", "height")}
            for sentence in take(record, "sentences", list, where):
                text = take(sentence, "raw" if "raw" in sentence else "sent", str, where)
                examples.append(
                    Example(take(sentence, "sent_id", int, where), text, (str(image),), boxes[box][1], facts=size)
                )
        unique((example.id for example in examples), str(path))
        return examples

    def scores(self, examples: Sequence[Example], predictions: np.ndarray) -> dict[str, np.ndarray]:
        pairs = zip(examples, predictions, strict=True)
        return {"accuracy": np.array([float(iou(box, example.target)[0] > 0.5) for example, box in pairs])}

    def submission(self, examples: Sequence[Example], predictions: np.ndarray) -> str:
        """A JSON list of the predicted boxes, x y width height; there is no official server."""
        return json.dumps(
            [
                {"sent_id": example.id, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                for example, (x1, y1, x2, y2) in zip(examples, np.asarray(predictions).tolist(), strict=True)
            ]
        )


_SETTINGS = {"group": "G3", "head": GroundingHead(), "words": 20, "batch_size": 256, "lr": 2e-5, "images": "coco"}
_UNC = {"splits": ("train", "val", "testA", "testB"), "tests": ("testA", "testB"), "files": ("refs(unc).p", INSTANCES)}
_UMD = {"splits": ("train", "val", "test"), "tests": ("test",), "files": ("refs(umd).p", INSTANCES)}

TASKS = (
    ReferringExpressions(name="refcoco", title="RefCOCO", token=9, **_UNC, **_SETTINGS),
    ReferringExpressions(name="refcoco+", title="RefCOCO+", token=10, **_UNC, **_SETTINGS),
    ReferringExpressions(name="refcocog", title="RefCOCOg", token=11, **_UMD, **_SETTINGS),
)
