"""The base class of tasks: hyperparameters of the paper's table 8, official files, scores and submissions."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.annotations.example import Box, Example
from finetune.annotations.official_files import find_file, plain_or_packed
from finetune.heads.base import Head
from shards.common.errors import UserError

TASK_TOKENS = 20  # task tokens of a model; those of the tasks are 1 to 19


class FurtherScores(ABC):
    """Metrics of a split that need predictions of further examples, or further official files.

    examples: the further examples to predict; absent: a message on the metrics that cannot be computed and the files
    that they need, or "".
    """

    examples: Sequence[Example]
    absent: str

    @abstractmethod
    def scores(self, predictions: Mapping[int | str, object]) -> dict[str, float]:
        """Metric -> value. predictions: by id of the further examples, without skipped ones."""

    @abstractmethod
    def describe(self, scores: dict[str, float]) -> str:
        """The metrics of `scores` in one line."""


@dataclass(frozen=True)
class AnnotatedImage:
    """The annotated boxes of an image by id, and its (width, height) in pixels if the annotations contain them."""

    boxes: dict[str, Box]
    size: tuple[int, int] | None = None


class GivenBoxes(ABC):
    """What a task has whose annotations contain boxes."""

    @abstractmethod
    def given_boxes(self, folder: Path) -> dict[str, AnnotatedImage]:
        """Image -> its boxes, from the official files in a folder."""


@dataclass(frozen=True)
class Task(ABC):
    """A task. Subclasses implement reading, scores and submissions of a kind of data set.

    Args:
        name: name in flags and folders.
        title: name in tables.
        group: the paper's group (G1 to G4), or another name for a task that is not in the paper; "all" and the MT score
            do not include such tasks.
        token: number of the task token.
        head: its kind of answer; tasks with the same head share its weights.
        max_tokens: maximum number of tokens of a text, including [CLS] and [SEP].
        batch_size, lr: hyperparameters of single-task training.
        images: name of the region shards of its images.
        splits: all splits, training first, validation second.
        tests: splits that together are the test set.
        max_regions: maximum number of regions per image.
        files: names of the official files.
        downloads: name of an official file -> where it can be downloaded, for finetune.doctor; needed for tasks that
            are not in the table of finetune/reporting/downloads.toml.
        published: name of its folder in the reference implementation's archive, if it differs from `name`.
        max_boxes: with a head that has candidates, maximum number of given boxes in the image stream, including those
            of other questions about the image; the question's own boxes are always included.
    """

    name: str
    title: str
    group: str
    token: int
    head: Head
    max_tokens: int
    batch_size: int
    lr: float
    images: str
    splits: tuple[str, ...]
    tests: tuple[str, ...] = ()
    max_regions: int = 100
    files: tuple[str, ...] = ()
    # Not in the hash, for which a dict has none, nor in the representation, on which prepared examples depend.
    downloads: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    published: str = ""
    max_boxes: int = 0

    def folder(self, data: str | Path) -> Path:
        """The folder of its official files in a data folder: DATA/name, else DATA/published."""
        folders = [Path(data) / name for name in (self.name, self.published) if name]
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    def missing_files(self, folder: Path) -> list[str]:
        """The names of the official files that do not exist in its folder."""
        return [name for name in self.files if not plain_or_packed(find_file(folder, name)).exists()]

    @property
    def learned(self) -> tuple[str, ...]:
        """The disjoint splits that contain all training and validation examples."""
        return tuple(split for split in self.splits[:2] if not self.is_test(split))

    def is_test(self, split: str) -> bool:
        return split in self.tests

    @property
    def reported(self) -> tuple[str, ...]:
        """Splits whose scores are usually published as test scores."""
        return self.tests

    def is_public(self, examples: Sequence[Example]) -> bool:
        """Whether the ground truth of examples is public. That of retrieval always is: captions have their image."""
        return self.head.ranks_images or all(example.target is not None for example in examples)

    def photo(self, image: str) -> str:
        """The name of an image's photo across tasks: COLLECTION:ID (see decontamination.image_identity).

        Visual7W's images are Visual Genome's; its official files name them v7w_ID.
        """
        if self.images == "visual7w":
            return f"genome:{image.removeprefix('v7w_')}"
        return f"{self.images}:{image}"

    def kind(self, example: Example) -> str | None:
        """The official type of an example, by which scores are reported; None if there are no types."""
        return None

    def breakdown(self, examples: Sequence[Example], values: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """The main metric by further types, which only finetune.evaluate reports.

        Args:
            examples: of one split.
            values: float (examples,), the main metric of each.

        Returns:
            Title -> type, in alphabetical order -> values of its examples.
        """
        return {}

    def further_scores(
        self, folder: Path, split: str, examples: Sequence[Example], predictions: Any
    ) -> FurtherScores | None:
        """Metrics that finetune.evaluate reports in addition to `scores`, or None.

        Args:
            folder: of the official files.
            split: a split with public answers.
            examples: of this split.
            predictions: of these examples, as for `scores`.
        """
        return None

    def image_counts(self, folder: Path, split: str) -> Counter[tuple[str, ...]]:
        """Number of examples of a split by their images. Overridden to read less of large files than `examples`."""
        return Counter(example.images for example in self.examples(folder, split))

    @abstractmethod
    def examples(self, folder: Path, split: str) -> list[Example]:
        """The examples of a split from the official files in a folder, in file order."""

    @abstractmethod
    def scores(self, examples: Sequence[Example], predictions: Any) -> dict[str, np.ndarray]:
        """Metric -> float array of its values, the main metric first; a score is their mean.

        The main metric has one value per example, in order; others may cover only some of the examples. predictions:
        see predictions.predict.
        """

    @abstractmethod
    def submission(self, examples: Sequence[Example], predictions: Any) -> str:
        """The text of a submission file for the official server."""

    def check_split(self, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"--split {split}: {self.name} has {', '.join(self.splits)}")

    def read(self, folder: str | Path, split: str) -> list[Example]:
        """`examples`, checked: raises UserError for an unknown or empty split."""
        self.check_split(split)
        examples = self.examples(Path(folder), split)
        if not examples:
            raise UserError(f"{folder}: no examples in {self.name}'s split {split}")
        return examples

    def part_scores(self, values: np.ndarray, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        """Type of an example (see `kind`), in alphabetical order -> values of its examples."""
        return scores_by(values, [self.kind(example) for example in examples])


def scores_by(values: np.ndarray, names: Sequence[str | int | None]) -> dict[str, np.ndarray]:
    """Name -> its values, sorted by name.

    Args:
        values: float (n,).
        names: of every value, all strings or all numbers; None for values without a name.
    """
    labels = np.array([name if name is not None else "" for name in names], dtype=object)
    return {str(name): values[labels == name] for name in sorted({name for name in names if name is not None})}
