"""Visual Genome QA: questions with one answer each, from VQA's answer vocabulary."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from finetune.annotations import reference_annotations
from finetune.annotations.answers import normalise
from finetune.annotations.example import Example
from finetune.annotations.official_files import find_file, scan, scan_list, unique
from finetune.annotations.source_files import once
from finetune.heads.answer_head import AnswerHead
from finetune.task_types.answering import AnsweringTask, held_out_by_id

IMAGE_DATA = "image_data.json"  # COCO and Flickr ids of the images, for decontamination
HELD_OUT = 5000  # validation questions, the last by id
QUESTIONS = "question_answers.json"
PROCESSED = ("trainval", "train", "val")  # pickles of the reference implementation; the first replaces the others


class Asked(msgspec.Struct):
    """The id and image of a question."""

    id: int = msgspec.field(name="qa_id")
    image: int = msgspec.field(name="image_id")


class AskedOfImage(msgspec.Struct):
    """The questions of one image."""

    qas: list[Asked]


class Question(msgspec.Struct):
    """The fields of a question record."""

    id: int = msgspec.field(name="qa_id")
    image: int = msgspec.field(name="image_id")
    question: str
    answer: str


class QuestionsOfImage(msgspec.Struct):
    """The questions of one image, with their answers."""

    qas: list[Question]


@dataclass(frozen=True)
class VisualGenomeQA(AnsweringTask):
    """A question whose answer is not in the vocabulary has a target of zeros, and every prediction is wrong."""

    def examples(self, folder: Path, split: str) -> list[Example]:
        train, val = held_out_by_id(read(folder), HELD_OUT, 0.1)
        return train if split == "train" else val

    def image_counts(self, folder: Path, split: str) -> Counter[tuple[str, ...]]:
        path = find_file(folder, QUESTIONS)
        if not path.exists():
            return super().image_counts(folder, split)
        asked = [question for image in scan(path, list[AskedOfImage]) for question in image.qas]
        train, val = held_out_by_id(asked, HELD_OUT, 0.1)
        return Counter((str(question.image),) for question in (train if split == "train" else val))

    def right_answers(self, folder: Path) -> list[str]:
        return [answer for example in self.examples(folder, "train") for answer in example.target]

    def scores(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, np.ndarray]:
        pairs = zip(examples, predictions, strict=True)
        return {"accuracy": np.array([float(normalise(answer) in example.target) for example, answer in pairs])}

    def submission(self, examples: Sequence[Example], predictions: Sequence[str]) -> str:
        pairs = zip(examples, predictions, strict=True)
        return json.dumps([{"qa_id": example.id, "answer": answer} for example, answer in pairs])


@once
def read(folder: Path) -> list[Example]:
    """All questions, from the official file or else the reference implementation's."""
    path = find_file(folder, QUESTIONS)
    if not path.exists() and reference_annotations.has_questions(folder, *PROCESSED):
        found = reference_annotations.questions(folder, *PROCESSED).values()
        return [Example(each.id, each.text or "", (each.image,), each.target) for each in found]
    examples = []
    for _, image in scan_list(path, None, "image", QuestionsOfImage):
        examples += [Example(q.id, q.question, (str(q.image),), {normalise(q.answer): 1.0}) for q in image.qas]
    unique((example.id for example in examples), str(path))
    return examples


TASKS = (
    VisualGenomeQA(
        name="vgqa",
        title="Visual Genome QA",
        group="G1",
        token=2,
        head=AnswerHead("vqa"),
        max_tokens=26,
        batch_size=128,
        lr=4e-5,
        images="genome",
        splits=("train", "val"),
        at_least=9,
        annotated=QUESTIONS,
        answers_of="vqa",
        files=(QUESTIONS, IMAGE_DATA),
        published="visual_genome",
    ),
)
