"""VQA v2: open-ended questions on COCO images, with the answers of ten annotators each."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from finetune.annotations import reference_annotations
from finetune.annotations.answers import normalise, soft_scores, vqa_accuracy
from finetune.annotations.example import Example
from finetune.annotations.official_files import find_file, scan, scan_list, unique
from finetune.annotations.source_files import once
from finetune.heads.answer_head import AnswerHead
from finetune.task_types.answering import AnsweringTask, held_out_by_id
from finetune.task_types.base import scores_by
from shards.common.errors import UserError

MINVAL = 3000  # held-out questions of val, the last by id


class Asked(msgspec.Struct):
    """The id and image of a question."""

    id: int = msgspec.field(name="question_id")
    image: int = msgspec.field(name="image_id")


class QuestionFile(msgspec.Struct):
    """The ids and images of an official question file."""

    questions: list[Asked]


class Question(msgspec.Struct):
    """The fields of a question record."""

    id: int = msgspec.field(name="question_id")
    image: int = msgspec.field(name="image_id")
    question: str


class Answer(msgspec.Struct):
    """The answer of one annotator."""

    answer: str


class Annotation(msgspec.Struct):
    """The fields of an annotation record that examples and the vocabulary need."""

    question: int = msgspec.field(name="question_id")
    answers: list[Answer]
    answer_type: str
    question_type: str | None = None
    most_frequent: str | None = msgspec.field(name="multiple_choice_answer", default=None)


class Answered(NamedTuple):
    """The answers to a question: its target, the facts of its example, and the most frequent answer."""

    target: dict[str, float]
    facts: dict
    most_frequent: str | None


@dataclass(frozen=True)
class VQA(AnsweringTask):
    """Splits: trainval is train and val without minval; test and test-dev have no public answers."""

    def examples(self, folder: Path, split: str) -> list[Example]:
        if split == "trainval":
            rest, _ = held_out_by_id(read(folder, "val"), MINVAL, 0.5)
            return read(folder, "train") + rest
        if split == "minval":
            return held_out_by_id(read(folder, "val"), MINVAL, 0.5)[1]
        return read(folder, split)

    def is_test(self, split: str) -> bool:
        return split.startswith("test")  # test-dev is a part of test

    def image_counts(self, folder: Path, split: str) -> Counter[tuple[str, ...]]:
        if split in ("trainval", "minval"):
            rest, minval = held_out_by_id(asked(folder, "val"), MINVAL, 0.5)
            found = minval if split == "minval" else asked(folder, "train") + rest
        else:
            found = asked(folder, split)
        return Counter((str(question.image),) for question in found)

    def right_answers(self, folder: Path) -> list[str]:
        found = []
        for split in ("train", "val"):
            path = _annotation_file(folder, split)
            for question, answered in annotations(path).items():
                if answered.most_frequent is None:
                    raise UserError(f"{path}, question_id {question}: has no multiple_choice_answer")
                found.append(answered.most_frequent)
        return found

    def kind(self, example: Example) -> str | None:
        return example.facts.get("answer_type")

    def breakdown(self, examples: Sequence[Example], values: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """By the 65 official question types (first words of questions); empty if the annotations lack them."""
        found = scores_by(values, [example.facts.get("question_type") for example in examples])
        return {"question type": found} if found else {}

    def scores(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, np.ndarray]:
        """The official accuracy; if the ten answers are not known, the soft score of the predicted answer."""
        pairs = zip(examples, predictions, strict=True)
        if any("answers" not in example.facts for example in examples):
            return {"soft score": np.array([example.target.get(normalise(answer), 0.0) for example, answer in pairs])}
        values = np.array([vqa_accuracy(answer, example.facts["answers"]) for example, answer in pairs])
        return {"accuracy": values} | self.part_scores(values, examples)

    def submission(self, examples: Sequence[Example], predictions: Sequence[str]) -> str:
        pairs = zip(examples, predictions, strict=True)
        return json.dumps([{"question_id": example.id, "answer": answer} for example, answer in pairs])


_YEARS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}


@once
def annotations(path: Path) -> dict[int, Answered]:
    """The answers of an official file by question id."""
    found: dict[int, Answered] = {}
    for where, record in scan_list(path, "annotations", "annotation", Annotation):
        if record.question in found:
            raise UserError(f"{where}: duplicate question_id {record.question}")
        if not record.answers:
            raise UserError(
                f"{where}: answers of question_id {record.question} is empty; remove the question, or add answers"
            )
        answers = [sys.intern(one.answer) for one in record.answers]
        facts = {"answers": answers, "answer_type": sys.intern(record.answer_type)}
        if record.question_type is not None:
            facts["question_type"] = sys.intern(record.question_type)
        most = record.most_frequent
        found[record.question] = Answered(soft_scores(answers), facts, most if most is None else sys.intern(most))
    return found


def _annotation_file(folder: Path, split: str) -> Path:
    return find_file(folder, f"v2_mscoco_{_YEARS[split]}_annotations.json")


def _answers(folder: Path, split: str) -> dict[int, tuple[dict[str, float], dict]]:
    """Question id -> (target, facts), from the annotations or else the reference implementation's targets."""
    if not _annotation_file(folder, split).exists() and reference_annotations.has_questions(folder, "trainval", split):
        return {
            question: (found.target, {})
            for question, found in reference_annotations.questions(folder, "trainval", split).items()
        }
    found = annotations(_annotation_file(folder, split))
    return {question: (answered.target, answered.facts) for question, answered in found.items()}


def asked(folder: Path, split: str) -> list[Asked]:
    """The ids and images of the questions of one official file."""
    return scan(_question_file(folder, split), QuestionFile).questions


def _question_file(folder: Path, split: str) -> Path:
    return find_file(folder, f"v2_OpenEnded_mscoco_{_YEARS[split]}_questions.json")


@once
def read(folder: Path, split: str) -> list[Example]:
    """The questions of one official file, with answers for train and val."""
    path = _question_file(folder, split)
    answered = _answers(folder, split) if split in ("train", "val") else {}
    examples = []
    for where, record in scan_list(path, "questions", "question", Question):
        if split in ("train", "val") and record.id not in answered:
            raise UserError(f"{where}: question_id {record.id} has no annotation in v2_mscoco_{_YEARS[split]}")
        target, facts = answered.get(record.id, (None, {}))
        examples.append(Example(record.id, record.question, (str(record.image),), target, facts=facts))
    unique((example.id for example in examples), str(path))
    return examples


TASKS = (
    VQA(
        name="vqa",
        title="VQA v2",
        group="G1",
        token=1,
        head=AnswerHead("vqa"),
        max_tokens=23,
        batch_size=128,
        lr=4e-5,
        images="coco",
        splits=("trainval", "minval", "train", "val", "test", "test-dev"),
        tests=("test",),
        at_least=9,
        annotated="v2_mscoco_train2014_annotations.json",
        files=(
            *(f"v2_OpenEnded_mscoco_{year}_questions.json" for year in _YEARS.values()),
            *(f"v2_mscoco_{year}_annotations.json" for year in ("train2014", "val2014")),
        ),
        published="VQA",
    ),
)
