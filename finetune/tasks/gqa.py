"""GQA: compositional questions on Visual Genome images, with one short answer each."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from finetune.annotations import reference_annotations
from finetune.annotations.example import Example
from finetune.annotations.official_files import find_file, scan_records
from finetune.annotations.source_files import once
from finetune.heads.answer_head import AnswerHead
from finetune.metrics.gqa_metrics import WITH_FILES, OfficialScores, Operation, official_scores, step_count
from finetune.task_types.answering import AnsweringTask, held_out_by_id
from finetune.task_types.base import scores_by
from shards.common.errors import UserError
from shards.common.image_id import image_id

ANSWERED = ("train", "val", "testdev")  # splits with public answers
FACTS = ("type", "semantic", "detailed", "group", "steps")
MINVAL = 3000  # held-out questions of train and val together, the last by id

# Splits whose files contain all questions; those of other splits contain the balanced ones.
FILES = {"test_all": "test_all_questions.json", "submission": "submission_all_questions.json"}


class Types(msgspec.Struct):
    """The official types of a question."""

    structural: str | None = None
    semantic: str | None = None
    detailed: str | None = None


class Groups(msgspec.Struct):
    """The groups of a question; the distribution score compares answers within the global one."""

    everywhere: str | None = msgspec.field(name="global", default=None)


class Question(msgspec.Struct):
    """The fields of a question record that examples need."""

    question: str
    image: str | int = msgspec.field(name="imageId")
    answer: str | None = None
    types: Types | None = None
    groups: Groups | None = None
    semantic: list[Operation] | None = None

    def facts(self, known: dict[tuple, dict]) -> dict:
        """The types by which scores are reported. known: dicts of earlier questions by their values, which are shared
        because a million questions have few different ones."""
        types, group = self.types or Types(), self.groups.everywhere if self.groups else None
        steps = None if self.semantic is None else step_count(self.semantic)
        values = types.structural, types.semantic, types.detailed, group, steps
        return known.setdefault(values, dict(zip(FACTS, values, strict=True)))


class ImageOf(msgspec.Struct):
    """The image field of a question record."""

    image: str | int = msgspec.field(name="imageId")


class Asked(NamedTuple):
    """The id and image of a question."""

    id: str
    image: str


@dataclass(frozen=True)
class GQA(AnsweringTask):
    """Splits: trainval is the balanced train and val without minval; testdev is a test set with public answers.

    The answers of test, test_all (its balanced questions, and all of them) and submission are not public. The split
    submission contains the questions of val, testdev, test and the challenge; since val is training data, it is not in
    `tests`, and its images are not removed as test images.
    """

    def is_test(self, split: str) -> bool:
        return split in self.tests or split == "submission"

    @property
    def reported(self) -> tuple[str, ...]:
        return ("testdev",)

    def examples(self, folder: Path, split: str) -> list[Example]:
        if split in ("trainval", "minval"):
            rest, minval = held_out_by_id(read_trainval(folder), MINVAL, 0.1)
            return minval if split == "minval" else rest
        return read(folder, split)

    def image_counts(self, folder: Path, split: str) -> Counter[tuple[str, ...]]:
        parts = ("train", "val") if split in ("trainval", "minval") else (split,)
        files = [_file(folder, part) for part in parts]
        if reference_annotations.has_questions(folder, "trainval", *parts) and not all(path.exists() for path in files):
            return super().image_counts(folder, split)
        found = [Asked(id, image_id(str(of.image))) for path in files for id, of in scan_records(path, ImageOf)]
        if len(parts) > 1:
            rest, minval = held_out_by_id(found, MINVAL, 0.1)
            found = minval if split == "minval" else rest
        return Counter((question.image,) for question in found)

    def right_answers(self, folder: Path) -> list[str]:
        return [answer for example in read_trainval(folder) for answer in example.target]

    def answer_form(self, answer: str) -> str:
        """As annotated: the official accuracy compares texts, and VQA's normal form of t-shirt is t shirt."""
        return answer

    def kind(self, example: Example) -> str | None:
        return example.facts["type"]

    def scores(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, np.ndarray]:
        pairs = zip(examples, predictions, strict=True)
        values = np.array([float(answer in example.target) for example, answer in pairs])
        structures = [example.facts["type"] for example in examples]
        answers = [name and ("open" if name == "query" else "binary") for name in structures]  # the official rule
        return {"accuracy": values} | scores_by(values, answers) | self.part_scores(values, examples)

    def breakdown(self, examples: Sequence[Example], values: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """By structural and semantic type, number of reasoning steps, and number of words of the question."""
        names = {
            "structural type": [example.facts["type"] for example in examples],
            "semantic type": [example.facts.get("semantic") for example in examples],
            "steps": [example.facts.get("steps") for example in examples],
            "words": [len(example.text.split()) for example in examples],
        }
        return {title: parts for title, of in names.items() if (parts := scores_by(values, of))}

    def further_scores(
        self, folder: Path, split: str, examples: Sequence[Example], predictions: Sequence[str]
    ) -> OfficialScores:
        return official_scores(folder, split, examples, predictions)

    def submission(self, examples: Sequence[Example], predictions: Sequence[str]) -> str:
        pairs = zip(examples, predictions, strict=True)
        return json.dumps([{"questionId": example.id, "prediction": answer} for example, answer in pairs])


@once
def read_trainval(folder: Path) -> list[Example]:
    """The questions of train and val, from the official files or else the reference implementation's."""
    if not _file(folder, "train").exists() and reference_annotations.has_questions(folder, "trainval"):
        return _from_processed(folder, "trainval")
    return read(folder, "train") + read(folder, "val")


def _file(folder: Path, split: str) -> Path:
    return find_file(folder, FILES.get(split, f"{split}_balanced_questions.json"))


def read(folder: Path, split: str) -> list[Example]:
    """The questions of one official file, in file order. Answers are not normalised."""
    path = _file(folder, split)
    if not path.exists() and reference_annotations.has_questions(folder, split):
        return _from_processed(folder, split)
    examples: list[Example] = []
    facts: dict[tuple, dict] = {}
    targets: dict[str, dict[str, float]] = {}
    for id, found in scan_records(path, Question):
        if found.answer is None and split in ANSWERED:
            raise UserError(f"{path}, record {id}: no answer, although {split} has answers; download the file again")
        target = None if found.answer is None else targets.setdefault(found.answer, {found.answer: 1.0})
        images = (image_id(str(found.image)),)
        examples.append(Example(id, found.question, images, target, facts=found.facts(facts)))
    return examples


def _from_processed(folder: Path, split: str) -> list[Example]:
    return [
        Example(str(found.id), found.text or "", (found.image,), found.target, facts={"type": None})
        for found in reference_annotations.questions(folder, split).values()
    ]


TASKS = (
    GQA(
        name="gqa",
        title="GQA",
        group="G1",
        token=15,
        head=AnswerHead("gqa"),
        max_tokens=26,
        batch_size=128,
        lr=4e-5,
        images="genome",
        splits=("trainval", "minval", "train", "val", "testdev", "test", "test_all", "submission"),
        tests=("testdev", "test", "test_all"),
        annotated="train_balanced_questions.json",
        files=(
            *(f"{split}_balanced_questions.json" for split in ("train", "val", "testdev", "test")),
            *FILES.values(),
            *(f"{split}_{kind}.json" for split in WITH_FILES for kind in ("all_questions", "choices")),
        ),
    ),
)
