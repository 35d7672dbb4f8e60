"""VQA v2: open questions on COCO images, answered by ten people each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.answering import AnsweringTask, held_out_by_id
from finetune.answers import soft_scores, vqa_accuracy
from finetune.official import read_annotations, take, unique
from finetune.task import Example, part_scores
from shards.errors import UserError

MINVAL = 3000  # questions of val, the last by id, that training leaves out


@dataclass(frozen=True)
class VQA(AnsweringTask):
    """Splits: trainval is train and val without minval. test and test-dev have no public answers."""

    def examples(self, folder: Path, split: str) -> list[Example]:
        if split == "trainval":
            rest, _ = held_out_by_id(read(folder, "val"), MINVAL, 0.5)
            return read(folder, "train") + rest
        if split == "minval":
            return held_out_by_id(read(folder, "val"), MINVAL, 0.5)[1]
        return read(folder, split)

    def right_answers(self, folder: Path) -> list[str]:
        return [
            take(record, "multiple_choice_answer", str, where)
            for split in ("train", "val")
            for where, record in annotations(folder, split)
        ]

    def scores(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, np.ndarray]:
        values = np.array(
            [vqa_accuracy(said, example.facts["answers"]) for said, example in zip(predictions, examples, strict=True)]
        )
        return {"accuracy": values} | part_scores(values, [example.facts["answer_type"] for example in examples])

    def submission(self, examples: Sequence[Example], predictions: Sequence[str]) -> str:
        pairs = zip(examples, predictions, strict=True)
        return json.dumps([{"question_id": example.id, "answer": said} for example, said in pairs])


_YEARS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}


def annotations(folder: Path, split: str):
    """(place for messages, record) of every annotation of train or val."""
    path = folder / f"v2_mscoco_{_YEARS[split]}_annotations.json"
    for number, record in enumerate(take(read_annotations(path), "annotations", list, str(path))):
        yield f"{path}, annotation {number}", record


def read(folder: Path, split: str) -> list[Example]:
    """The questions of one official file, with their answers where there is a file of these."""
    path = folder / f"v2_OpenEnded_mscoco_{_YEARS[split]}_questions.json"
    answered = {}
    if split in ("train", "val"):
        for where, record in annotations(folder, split):
            question = take(record, "question_id", int, where)
            if question in answered:
                raise UserError(f"{where}: question_id {question} stands there twice")
            answers = take(record, "answers", list, where)
            answered[question] = {
                "answers": [take(answer, "answer", str, f"{where}, answers") for answer in answers],
                "answer_type": take(record, "answer_type", str, where),
            }
    examples = []
    for number, record in enumerate(take(read_annotations(path), "questions", list, str(path))):
        where = f"{path}, question {number}"
        question = take(record, "question_id", int, where)
        if split in ("train", "val") and question not in answered:
            raise UserError(f"{where}: question_id {question} has no annotation in v2_mscoco_{_YEARS[split]}")
        facts = answered.get(question, {})
        target = soft_scores(facts["answers"]) if facts else None
        image = str(take(record, "image_id", int, where))
        examples.append(Example(question, take(record, "question", str, where), (image,), target, facts=facts))
    unique((example.id for example in examples), str(path))
    return examples


TASKS = (
    VQA(
        name="vqa",
        title="VQA v2",
        group="G1",
        token=1,
        head="vqa",
        words=23,
        batch_size=128,
        lr=4e-5,
        images="coco",
        splits=("trainval", "minval", "train", "val", "test", "test-dev"),
        at_least=9,
    ),
)
