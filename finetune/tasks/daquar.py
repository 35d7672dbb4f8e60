"""DAQUAR: questions on photographs of rooms (NYU Depth v2), with answers of one or more words."""

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.annotations.example import Example
from finetune.annotations.official_files import find_file, read_text
from finetune.heads.answer_head import AnswerHead
from finetune.metrics.wordnet import DEBIAN, FILES, FOLDER_VARIABLE, find_nouns
from finetune.metrics.wups import THRESHOLDS, set_accuracy, words_of, wups
from finetune.task_types.answering import AnsweringTask
from finetune.task_types.base import FurtherScores
from shards.common.errors import UserError

TRAINING, TEST = "qa.894.raw.train.format_triple", "qa.894.raw.test.format_triple"
VALIDATION_SHARE = 5  # one in five images of the official training part, which has no validation split, is held out
_IMAGE = re.compile(r"image\d+")


@dataclass(frozen=True)
class Wups(FurtherScores):
    """WUPS at both published thresholds; empty without WordNet."""

    examples: Sequence[Example]
    absent: str
    known: dict[str, float]

    def scores(self, predictions: Mapping[int | str, object]) -> dict[str, float]:
        return self.known

    def describe(self, scores: dict[str, float]) -> str:
        return ", ".join(f"{name} {value:.2%}" for name, value in scores.items())


@dataclass(frozen=True)
class Daquar(AnsweringTask):
    """The vocabulary consists of the answers, as sets of words, of the official training part.

    The split val contains the training images whose name has a CRC-32 divisible by VALIDATION_SHARE.
    """

    def examples(self, folder: Path, split: str) -> list[Example]:
        path = find_file(folder, TEST if split == "test" else TRAINING)
        examples = [
            Example(number, question, (image,), {plain_answer(answer): 1.0}, facts={"answer": answer})
            for number, (question, answer, image) in enumerate(read_triples(path))
        ]
        if split == "test":
            return examples
        return [example for example in examples if is_held_out(example.images[0]) == (split == "val")]

    def right_answers(self, folder: Path) -> list[str]:
        return [answer for _, answer, _ in read_triples(find_file(folder, TRAINING))]

    def answer_form(self, answer: str) -> str:
        return plain_answer(answer)

    def scores(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, np.ndarray]:
        pairs = zip(examples, predictions, strict=True)
        return {"accuracy": np.array([set_accuracy(answer, example.facts["answer"]) for example, answer in pairs])}

    def further_scores(
        self, folder: Path, split: str, examples: Sequence[Example], predictions: Sequence[str]
    ) -> FurtherScores:
        nouns = find_nouns()
        if nouns is None:
            absent = (
                f"WUPS: not computed, WordNet's files not found ({', '.join(FILES)} in {DEBIAN}, or in the folder "
                f"${FOLDER_VARIABLE}); install Debian's package wordnet-base"
            )
            return Wups((), absent, {})
        right = [example.facts["answer"] for example in examples]
        return Wups((), "", {f"WUPS@{at}": wups(predictions, right, nouns, at) for at in THRESHOLDS})

    def submission(self, examples: Sequence[Example], predictions: Sequence[str]) -> str:
        """Input of calculate_wups.py: one answer per line, in the order of the questions."""
        return "".join(f"{answer}\n" for answer in predictions)


def read_triples(path: Path) -> Iterator[tuple[str, str, str]]:
    """(question, answer, image) of every question of an official file, which has three lines per question."""
    lines = list(read_text(path))
    if len(lines) % 3:
        raise UserError(f"{path}: has {len(lines)} lines, not three per question; download the file again")
    for begin in range(0, len(lines), 3):
        (_, question), (_, answer), (where, image) = lines[begin : begin + 3]
        if not _IMAGE.fullmatch(image):
            raise UserError(f"{where}: is {image!r}; should be the image name of the preceding question and answer")
        yield question, answer, image


def plain_answer(answer: str) -> str:
    """An answer as a set: each of its words once, in alphabetical order."""
    return ", ".join(sorted(set(words_of(answer))))


def is_held_out(image: str) -> bool:
    """Whether an image of the official training part belongs to the validation split."""
    return zlib.crc32(image.encode()) % VALIDATION_SHARE == 0


TASKS = (
    Daquar(
        name="daquar",
        title="DAQUAR",
        group="extra",
        token=19,
        head=AnswerHead("daquar"),
        max_tokens=40,
        batch_size=128,
        lr=4e-5,
        images="daquar",
        splits=("train", "val", "test"),
        tests=("test",),
        annotated=TRAINING,
        files=(TRAINING, TEST),
    ),
)
