"""GQA: compositional questions on Visual Genome images, with one short answer each."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from finetune import processed
from finetune.answering import AnsweringTask, held_out_by_id
from finetune.official import find_file, scan_records
from finetune.task import Example

MINVAL = 3000  # questions of train and val together, the last by id


class Types(msgspec.Struct):
    """What kind of question it is."""

    structural: str | None = None


class Question(msgspec.Struct):
    """As much of a record of the official files as examples have."""

    question: str
    image: str | int = msgspec.field(name="imageId")
    answer: str | None = None
    types: Types | None = None


class Asked(NamedTuple):
    """A question by id and image."""

    id: str
    image: str


@dataclass(frozen=True)
class GQA(AnsweringTask):
    """Splits: trainval is the balanced train and val without minval; testdev is the test."""

    def examples(self, folder: Path, split: str) -> list[Example]:
        if split in ("trainval", "minval"):
            rest, minval = held_out_by_id(read_trainval(folder), MINVAL, 0.1)
            return minval if split == "minval" else rest
        return read(folder, split)

    def image_counts(self, folder: Path, split: str) -> Counter[tuple[str, ...]]:
        parts = ("train", "val") if split in ("trainval", "minval") else (split,)
        files = [_file(folder, part) for part in parts]
        if processed.has_questions(folder, "trainval", *parts) and not all(path.exists() for path in files):
            return super().image_counts(folder, split)
        found = [Asked(id, str(of.image)) for path in files for id, of in scan_records(path, Question)]
        if len(parts) > 1:
            rest, minval = held_out_by_id(found, MINVAL, 0.1)
            found = minval if split == "minval" else rest
        return Counter((question.image,) for question in found)

    def right_answers(self, folder: Path) -> list[str]:
        return [answer for example in read_trainval(folder) for answer in example.target]

    def kind(self, example: Example) -> str | None:
        return example.facts["type"]

    def scores(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, np.ndarray]:
        pairs = zip(examples, predictions, strict=True)
        values = np.array([float(said in example.target) for example, said in pairs])
        return {"accuracy": values} | self.part_scores(values, examples)

    def submission(self, examples: Sequence[Example], predictions: Sequence[str]) -> str:
        pairs = zip(examples, predictions, strict=True)
        return json.dumps([{"questionId": example.id, "prediction": said} for example, said in pairs])


def read_trainval(folder: Path) -> list[Example]:
    """The questions of train and val, from the official files or, where these are not, the published code's."""
    if not _file(folder, "train").exists() and processed.has_questions(folder, "trainval"):
        return _from_processed(folder, "trainval")
    return read(folder, "train") + read(folder, "val")


def _file(folder: Path, split: str) -> Path:
    return find_file(folder, f"{split}_balanced_questions.json")


def read(folder: Path, split: str) -> list[Example]:
    """The questions of one official file, in its order. An answer is the official one to the letter."""
    path = _file(folder, split)
    if not path.exists() and processed.has_questions(folder, split):
        return _from_processed(folder, split)
    return [
        Example(
            id,
            found.question,
            (str(found.image),),
            None if found.answer is None else {found.answer: 1.0},
            facts={"type": found.types.structural if found.types else None},
        )
        for id, found in scan_records(path, Question)
    ]


def _from_processed(folder: Path, split: str) -> list[Example]:
    return [
        Example(str(found.id), found.text or "", (found.image,), found.target, facts={"type": None})
        for found in processed.questions(folder, split).values()
    ]


TASKS = (
    GQA(
        name="gqa",
        title="GQA",
        group="G1",
        token=15,
        head="gqa",
        words=26,
        batch_size=128,
        lr=4e-5,
        images="genome",
        splits=("trainval", "minval", "train", "val", "testdev"),
        tests=("testdev",),
        annotated="train_balanced_questions.json",
        files=tuple(f"{split}_balanced_questions.json" for split in ("train", "val", "testdev")),
    ),
)
