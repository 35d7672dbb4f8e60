"""SNLI-VE, visual entailment: whether a Flickr30k image entails a hypothesis, contradicts it, or neither."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.annotations.example import Example
from finetune.annotations.official_files import find_file, read_lines, take, unique
from finetune.heads.classification_head import ClassificationHead
from finetune.task_types.classification import LabelTask
from shards.common.errors import UserError
from shards.common.image_id import image_id

NO_LABEL = "-"  # the annotators disagreed; such pairs are skipped
IMAGE_KEYS = ("Flickr30K_ID", "Flikr30kID")  # the second one in older files, with .jpg


@dataclass(frozen=True)
class VisualEntailment(LabelTask):
    """Splits are named as in the official files."""

    def examples(self, folder: Path, split: str) -> list[Example]:
        path = find_file(folder, f"snli_ve_{split}.jsonl")
        return self.pairs(path, read_lines(path), IMAGE_KEYS, "sentence2")

    def pairs(
        self, path: Path, records: Iterable[tuple[str, dict]], image_keys: tuple[str, ...], hypothesis: str
    ) -> list[Example]:
        """The pairs of an image and a hypothesis that have a label.

        Args:
            path: official file.
            records: (location for messages, record) of all its pairs.
            image_keys: possible keys of the image in a record.
            hypothesis: key of the hypothesis in a record.
        """
        examples = []
        for where, record in records:
            label = take(record, "gold_label", str, where)
            if label == NO_LABEL:
                continue
            if label not in self.labels:
                raise UserError(f"{where}: gold_label is {label!r}; should be {', '.join(self.labels)} or {NO_LABEL}")
            key = next((key for key in image_keys if key in record), image_keys[0])
            image = image_id(str(take(record, key, (str, int), where)))
            text = take(record, hypothesis, str, where)
            examples.append(Example(take(record, "pairID", str, where), text, (image,), self.labels.index(label)))
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
