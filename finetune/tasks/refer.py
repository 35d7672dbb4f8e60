"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg. Which region does a phrase mean?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.boxes import iou
from finetune.official import read_annotations, read_pickle, take, take_box, unique
from finetune.task import Example, Task
from shards.errors import UserError


@dataclass(frozen=True)
class ReferringExpressions(Task):
    """Predictions: the chosen boxes, (n, 4) in pixels; right is an IoU above 0.5 with the one that is meant.

    file: the official pickle of expressions.
    """

    file: str = ""

    def examples(self, folder: Path, split: str) -> list[Example]:
        path, instances = folder / self.file, folder / "instances.json"
        known = read_annotations(instances)
        boxes = {
            take(record, "id", int, f"{instances}, annotation {number}"): take_box(
                record, "bbox", f"{instances}, annotation {number}"
            )
            for number, record in enumerate(take(known, "annotations", list, str(instances)))
        }
        sizes = {
            take(record, "id", int, f"{instances}, image {number}"): record
            for number, record in enumerate(take(known, "images", list, str(instances)))
        }
        examples = []
        for number, record in enumerate(read_pickle(path)):
            where = f"{path}, record {number}"
            if take(record, "split", str, where) != split:
                continue
            box, image = take(record, "ann_id", int, where), take(record, "image_id", int, where)
            for wanted, there, what in ((box, boxes, "annotation"), (image, sizes, "image")):
                if wanted not in there:
                    raise UserError(f"{where}: {what} {wanted} is not in {instances}")
            size = {side: take(sizes[image], side, int, f"{instances}, image {image}") for side in ("width", "height")}
            for sentence in take(record, "sentences", list, where):
                text = take(sentence, "raw" if "raw" in sentence else "sent", str, where)
                examples.append(
                    Example(take(sentence, "sent_id", int, where), text, (str(image),), boxes[box], facts=size)
                )
        unique((example.id for example in examples), str(path))
        return examples

    def scores(self, examples: Sequence[Example], predictions: np.ndarray) -> dict[str, np.ndarray]:
        pairs = zip(examples, predictions, strict=True)
        return {"accuracy": np.array([float(iou(box, example.target)[0] > 0.5) for example, box in pairs])}

    def submission(self, examples: Sequence[Example], predictions: np.ndarray) -> str:
        """No server takes one: a JSON list of the chosen boxes, x y width height."""
        return json.dumps(
            [
                {"sent_id": example.id, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                for example, (x1, y1, x2, y2) in zip(examples, np.asarray(predictions).tolist(), strict=True)
            ]
        )


_SETTINGS = {"group": "G3", "head": "regions", "words": 20, "batch_size": 256, "lr": 2e-5, "images": "coco"}
_SPLITS = ("train", "val", "testA", "testB")

TASKS = (
    ReferringExpressions(name="refcoco", title="RefCOCO", token=9, splits=_SPLITS, file="refs(unc).p", **_SETTINGS),
    ReferringExpressions(name="refcoco+", title="RefCOCO+", token=10, splits=_SPLITS, file="refs(unc).p", **_SETTINGS),
    ReferringExpressions(
        name="refcocog", title="RefCOCOg", token=11, splits=("train", "val", "test"), file="refs(umd).p", **_SETTINGS
    ),
)
