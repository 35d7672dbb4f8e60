"""What a task is: its settings of the paper's table 8, its official files, its scores and its submission."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetune.official import find_file, plain_or_packed
from shards.errors import UserError

Box = tuple[float, float, float, float]  # x1 y1 x2 y2 in pixels of the image


@dataclass(frozen=True)
class Example:
    """One thing to answer.

    images: ids in the task's region shards (NLVR2: left and right). target: what is right, by the kind of task
    (see the heads' names below), None where it is not public. candidates: boxes to choose from and their ids, where
    these come with the example. facts: what only scores or submissions need.

    answers: {answer: score}; retrieval: None; regions: the box that is meant; candidates: its number; classes: a label.
    """

    id: int | str
    text: str
    images: tuple[str, ...]
    target: object = None
    candidates: tuple[Box, ...] = ()
    candidate_ids: tuple[str, ...] = ()
    facts: dict = field(default_factory=dict)


class FurtherScores(ABC):
    """Metrics of a split that need more than its examples: predictions of further examples, or further official files.

    examples: the further examples of which predictions are needed; absent: a sentence on the metrics that cannot be
    computed and the files that would give them, "" where there are none.
    """

    examples: Sequence[Example]
    absent: str

    @abstractmethod
    def scores(self, predictions: Mapping[int | str, object]) -> dict[str, float]:
        """Name of a metric -> its value. predictions: by the id of the further examples that have one."""

    @abstractmethod
    def describe(self, scores: dict[str, float]) -> str:
        """The metrics of `scores` in one line."""


@dataclass(frozen=True)
class Task(ABC):
    """A task by name. The defaults of a data set are class attributes of the subclasses.

    group: of the paper (G1 to G4), or another name for a task that the paper does not have, which "all" and the MT
    score leave out; token: the task token; head: see heads.HEADS; words, regions: limits of the
    inputs; batch_size, lr: of single-task training; images: the name of its region shards; splits: what may be read,
    training first, validation second; tests: those of the test, all of it together; files: the official ones, by name;
    published: the name of its folder in the published code's archive, where it is another; max_boxes: with the head
    `candidates`, so many boxes of an image's annotations, of all its questions, are in the image stream at most (the
    question's own are in any case); ranked: with the head `regions`, predictions are not the best box of each example
    but all boxes of its image, best first.
    """

    name: str
    title: str
    group: str
    token: int
    head: str
    words: int
    batch_size: int
    lr: float
    images: str
    splits: tuple[str, ...]
    tests: tuple[str, ...] = ()
    regions: int = 100
    files: tuple[str, ...] = ()
    published: str = ""
    max_boxes: int = 0
    ranked: bool = False

    def folder(self, data) -> Path:
        """The folder of its official files in a data folder: of its own name, else of the published archive's."""
        folders = [Path(data) / name for name in (self.name, self.published) if name]
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    def missing_files(self, folder: Path) -> list[str]:
        """The names of the official files that are not in its folder."""
        return [name for name in self.files if not plain_or_packed(find_file(folder, name)).exists()]

    @property
    def learned(self) -> tuple[str, ...]:
        """Splits that have everything to train and validate on, each example in one of them."""
        return tuple(split for split in self.splits[:2] if not self.is_test(split))

    def is_test(self, split: str) -> bool:
        return split in self.tests

    @property
    def reported(self) -> tuple[str, ...]:
        """Splits whose scores are published as those of the test."""
        return self.tests

    def photo(self, image: str) -> str:
        """The name under which an image's photo is known to all tasks: a collection of photos, and its id there."""
        return f"{self.images}:{image}"

    def kind(self, example: Example) -> str | None:
        """The kind of an example that its data set names and scores are reported by, None where there is none."""
        return None

    def breakdown(self, examples: Sequence[Example], values: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Scores by types of which there are too many for every validation; finetune.evaluate reports them.

        Args:
            examples: of one split.
            values: float (examples,), the main metric of each.

        Returns:
            What the types are of -> name of a type in alphabetical order -> the values of its examples.
        """
        return {}

    def further_scores(
        self, folder: Path, split: str, examples: Sequence[Example], predictions
    ) -> FurtherScores | None:
        """Metrics that finetune.evaluate reports beside `scores`, None where there are none.

        Args:
            folder: of the official files.
            split: whose answers are public.
            examples: of this split.
            predictions: of these examples, as `scores` takes them.
        """
        return None

    def image_counts(self, folder: Path, split: str) -> Counter[tuple[str, ...]]:
        """How many examples of a split have the same images. Data sets with large files read less than examples do."""
        return Counter(example.images for example in self.examples(folder, split))

    @abstractmethod
    def examples(self, folder: Path, split: str) -> list[Example]:
        """The examples of a split from the official files in a folder, in their order there."""

    @abstractmethod
    def scores(self, examples: Sequence[Example], predictions) -> dict[str, np.ndarray]:
        """Name of a metric -> its value for every example (or every example that it is about), the main one first.

        The main one has a value for every example, in their order.

        A score is the mean of such values; predictions are what `predict` of the task's head gives.
        """

    @abstractmethod
    def submission(self, examples: Sequence[Example], predictions) -> str:
        """The text of the file that the official server takes."""

    def check_split(self, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"--split {split}: {self.name} has {', '.join(self.splits)}")

    def read(self, folder, split: str) -> list[Example]:
        """`examples` of a split that exists, of which there is at least one."""
        self.check_split(split)
        examples = self.examples(Path(folder), split)
        if not examples:
            raise UserError(f"{folder}: holds no example of {self.name}'s split {split}")
        return examples

    def part_scores(self, values: np.ndarray, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        """The values of the examples of each kind, by its name in alphabetical order."""
        return scores_by(values, [self.kind(example) for example in examples])


def scores_by(values: np.ndarray, names: Sequence[str | int | None]) -> dict[str, np.ndarray]:
    """The values (n,) of each name in alphabetical order, of numbers in ascending order.

    names: of every value, all texts or all numbers, None where it belongs to none.
    """
    labels = np.array([name if name is not None else "" for name in names], dtype=object)
    return {str(name): values[labels == name] for name in sorted({name for name in names if name is not None})}
