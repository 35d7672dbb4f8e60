"""SNLI-VE, visual entailment: whether a Flickr30k image entails a hypothesis, contradicts it, or neither."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from finetune.annotations.example import Example
from finetune.annotations.official_files import find_file, scan_located_lines, unique
from finetune.heads.classification_head import ClassificationHead
from finetune.task_types.classification import LabelTask
from shards.common.errors import UserError
from shards.common.image_id import image_id

NO_LABEL = "-"  # the annotators disagreed; such pairs are skipped


class Pair(msgspec.Struct):
    """The fields of a pair of an image and a hypothesis."""

    id: str = msgspec.field(name="pairID")
    label: str = msgspec.field(name="gold_label")
    hypothesis: str = msgspec.field(name="sentence2")
    image: str | int | None = msgspec.field(name="Flickr30K_ID", default=None)
    image_of_older_files: str | int | None = msgspec.field(name="Flikr30kID", default=None)


@dataclass(frozen=True)
class VisualEntailment(LabelTask):
    """Splits are named as in the official files."""

    def examples(self, folder: Path, split: str) -> list[Example]:
        path = find_file(folder, f"snli_ve_{split}.jsonl")
        return self.pairs(path, scan_located_lines(path, Pair))

    def pairs(self, path: Path, records: Iterable[tuple[str, Pair]]) -> list[Example]:
        """The examples of the pairs of an image and a hypothesis that have a label.

        Args:
            path: official file.
            records: (location for messages, pair) of all its pairs.
        """
        examples = []
        for where, pair in records:
            if pair.label == NO_LABEL:
                continue
            if pair.label not in self.labels:
                labels = ", ".join(self.labels)
                raise UserError(f"{where}: gold_label is {pair.label!r}; should be {labels} or {NO_LABEL}")
            image = pair.image_of_older_files if pair.image is None else pair.image
            if image is None:
                raise UserError(f"{where}: has no Flickr30K_ID; download the file again")
            target = self.labels.index(pair.label)
            examples.append(Example(pair.id, pair.hypothesis, (image_id(str(image)),), target))
        unique((example.id for example in examples), str(path))
        return examples

    def kind(self, example: Example) -> str | None:
        return self.labels[example.target]

    def scores(self, examples: Sequence[Example], predictions: Sequence[int]) -> dict[str, np.ndarray]:
        right = self.right(examples, predictions)
        return {"accuracy": right} | self.part_scores(right, examples)

    def submission(self, examples: Sequence[Example], predictions: Sequence[int]) -> str:
        pairs = zip(examples, predictions, strict=True)
        return "".join(
            json.dumps({"pairID": example.id, "prediction": self.labels[chosen]}) + "\n" for example, chosen in pairs
        )


TASKS = (
    VisualEntailment(
        name="snli_ve",
        title="SNLI-VE",
        group="G4",
        token=13,
        head=ClassificationHead("entailment", ("contradiction", "neutral", "entailment")),
        max_tokens=56,
        batch_size=256,
        lr=2e-5,
        images="flickr",
        splits=("train", "dev", "test"),
        tests=("test",),
        files=tuple(f"snli_ve_{split}.jsonl" for split in ("train", "dev", "test")),
        published="visual_entailment",
    ),
)
