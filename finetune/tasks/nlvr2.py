"""NLVR2: decide whether a sentence is true of two images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from finetune.annotations.example import Example
from finetune.annotations.official_files import find_file, scan_located_lines, unique
from finetune.heads.classification_head import PairClassificationHead
from finetune.task_types.classification import LabelTask
from shards.common.errors import UserError


class Sentence(msgspec.Struct):
    """The fields of a sentence about two images."""

    identifier: str
    label: str
    sentence: str


@dataclass(frozen=True)
class NLVR2(LabelTask):
    """Identifiers are SPLIT-SET-PAIR-SENTENCE; SPLIT-SET-PAIR identifies the two images."""

    def examples(self, folder: Path, split: str) -> list[Example]:
        path = find_file(folder, f"{split}.json")
        examples = []
        for where, record in scan_located_lines(path, Sentence):
            if record.identifier.count("-") != 3:
                raise UserError(f"{where}: identifier is {record.identifier!r}; should be SPLIT-SET-PAIR-SENTENCE")
            if record.label not in self.labels:
                raise UserError(f"{where}: label is {record.label!r}; should be {' or '.join(self.labels)}")
            pair, _, _ = record.identifier.rpartition("-")
            images = (f"{pair}-img0", f"{pair}-img1")
            examples.append(Example(record.identifier, record.sentence, images, self.labels.index(record.label)))
        unique((example.id for example in examples), str(path))
        return examples

    def scores(self, examples: Sequence[Example], predictions: Sequence[int]) -> dict[str, np.ndarray]:
        """Accuracy, and consistency: per sentence, whether the predictions for all its image pairs are correct.

        As in the official evaluation, sentences are identified by the identifier without PAIR, not by their text, since
        different annotators may have written the same text.
        """
        right = self.right(examples, predictions)
        by_sentence: dict[str, float] = {}
        for example, value in zip(examples, right.tolist(), strict=True):
            sentence = sentence_of(example.id)
            by_sentence[sentence] = min(value, by_sentence.get(sentence, 1.0))
        return {"accuracy": right, "consistency": np.array(list(by_sentence.values()))}

    def submission(self, examples: Sequence[Example], predictions: Sequence[int]) -> str:
        pairs = zip(examples, predictions, strict=True)
        return "".join(f"{example.id},{self.labels[chosen]}\n" for example, chosen in pairs)


def sentence_of(identifier: str) -> str:
    """SPLIT-SET-SENTENCE of an identifier, which identifies the sentence."""
    split, number, _, sentence = identifier.split("-")
    return f"{split}-{number}-{sentence}"


TASKS = (
    NLVR2(
        name="nlvr2",
        title="NLVR2",
        group="G4",
        token=12,
        head=PairClassificationHead("nlvr2", ("False", "True")),
        max_tokens=40,
        batch_size=64,
        lr=2e-5,
        images="nlvr2",
        splits=("train", "dev", "test1"),
        tests=("test1",),
        files=("train.json", "dev.json", "test1.json"),
    ),
)
