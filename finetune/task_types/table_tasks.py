"""Tasks of a user's own tables, described by a TOML file instead of a Python module (docs/own_task.md)."""

import json
import re
import tomllib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from finetune.annotations.boxes import IOU_CORRECT, iou_with_box
from finetune.annotations.example import Example
from finetune.annotations.official_files import MissingFile, existing, find_file, read_csv, read_lines, unique
from finetune.heads.answer_head import AnswerHead
from finetune.heads.classification_head import ClassificationHead, PairClassificationHead
from finetune.heads.grounding_head import GroundingHead
from finetune.task_types.answering import AnsweringTask
from finetune.task_types.base import Task
from finetune.task_types.classification import LabelTask
from shards.common.errors import UserError
from shards.common.image_id import image_id
from shards.common.untrusted_input import check_pixels, is_number, reason_of, refuse_special_file, shown

GROUP = "own"  # group of these tasks, for --task and --tasks
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
SUFFIXES = (".csv", ".jsonl")
LABELLED = ("labels", "pairs")  # kinds of tasks with labels
Count = Annotated[int, msgspec.Meta(ge=1)]


class Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The names of a table's columns; `id` and `type` are None for a table without them."""

    text: str = "text"
    image: str = "image"
    second_image: str = "second_image"
    answer: str = "answer"
    box: str = "box"
    id: str | None = None
    type: str | None = None


class TaskFile(msgspec.Struct, forbid_unknown_fields=True):
    """The content of a TOML file that describes a task."""

    kind: Literal["answers", "labels", "pairs", "grounding"]
    images: str
    splits: dict[str, str]
    title: str = ""
    labels: list[str] = []
    columns: Columns = Columns()
    max_tokens: Count = 30
    batch_size: Count = 128
    lr: Annotated[float, msgspec.Meta(gt=0)] = 2e-5
    min_answer_count: Count = 1
    token: Count | None = None


SAME_NAMES = Columns()


@dataclass(frozen=True)
class TableTask(Task):
    """A task whose splits are tables, CSV with a header or JSON lines; the first two are for training and validation.

    tables: (split, file name) of every split; columns: names of the columns.
    """

    tables: tuple[tuple[str, str], ...] = ()
    columns: Columns = SAME_NAMES

    def examples(self, folder: Path, split: str) -> list[Example]:
        path = find_file(folder, dict(self.tables)[split])
        if not existing(path):
            raise MissingFile(
                f"{path}: not found; add this table of the split {split}, or name another one under [splits] in "
                f"{self.name}.toml"
            )
        rows = read_csv(path) if path.suffix == ".csv" else read_lines(path)
        found = [self._example(number, where, row) for number, (where, row) in enumerate(rows)]
        unique((example.id for example in found), str(path))
        if split in self.splits[:2] and (unknown := next((one for one in found if one.target is None), None)):
            column = self.columns.box if self.head.finds_regions else self.columns.answer
            raise UserError(f"{path}, example {unknown.id}: {column} is missing; the split {split} needs it")
        return found

    def _example(self, number: int, where: str, row: object) -> Example:
        if not isinstance(row, dict):
            raise UserError(f"{where}: should be an object and is a {type(row).__name__}")
        columns = self.columns
        names = (columns.image, columns.second_image)[: self.head.images_per_example]
        images = tuple(image_id(_text(row, name, where)) for name in names)
        identifier = number if columns.id is None else _text(row, columns.id, where)
        facts = {} if columns.type is None else {"type": _text(row, columns.type, where)}
        return Example(identifier, _text(row, columns.text, where), images, self.target(row, where), facts=facts)

    @abstractmethod
    def target(self, row: dict[str, Any], where: str) -> object:
        """The target of a row, None if it has none. where: location for messages."""

    def kind(self, example: Example) -> str | None:
        return example.facts.get("type")

    def scores(self, examples: Sequence[Example], predictions: Any) -> dict[str, np.ndarray]:
        pairs = zip(examples, predictions, strict=True)
        right = np.array([float(self.is_right(example, one)) for example, one in pairs])
        return {"accuracy": right} | self.part_scores(right, examples)

    @abstractmethod
    def is_right(self, example: Example, prediction: Any) -> bool:
        """Whether the prediction for an example counts as correct."""

    def submission(self, examples: Sequence[Example], predictions: Any) -> str:
        """A line of JSON per example: its id and the predicted answer, label or box."""
        pairs = zip(examples, predictions, strict=True)
        return "".join(json.dumps({"id": example.id, **self.stored(one)}) + "\n" for example, one in pairs)

    @abstractmethod
    def stored(self, prediction: Any) -> dict[str, Any]:
        """A prediction for `submission`."""


@dataclass(frozen=True)
class TableAnswers(TableTask, AnsweringTask):
    """Answers of a vocabulary; a row has one answer, or in JSON a list of equally right ones."""

    def target(self, row: dict[str, Any], where: str) -> dict[str, float] | None:
        value = row.get(self.columns.answer)
        if value in (None, "", []):
            return None
        answers = value if isinstance(value, list) else [value]
        if not all(isinstance(answer, str | int) for answer in answers):
            raise UserError(f"{where}: {self.columns.answer} is {shown(value)}; should be a text or a list of texts")
        return {self.answer_form(str(answer)): 1.0 for answer in answers}

    def answer_form(self, answer: str) -> str:
        """The answer in lower case. VQA's normal form would make "A", "the" and "+" empty, and "C++" equal to "C"."""
        return " ".join(answer.lower().split())

    def right_answers(self, folder: Path) -> list[str]:
        return [answer for example in self.examples(folder, self.splits[0]) for answer in example.target]

    def is_right(self, example: Example, prediction: str) -> bool:
        return prediction in example.target

    def stored(self, prediction: str) -> dict[str, Any]:
        return {"answer": prediction}


@dataclass(frozen=True)
class TableLabels(TableTask, LabelTask):
    """Labels of an image, or of a pair of images."""

    def target(self, row: dict[str, Any], where: str) -> int | None:
        value = row.get(self.columns.answer)
        if value in (None, ""):
            return None
        if str(value) not in self.labels:
            allowed = ", ".join(self.labels)
            raise UserError(f"{where}: {self.columns.answer} is {shown(value)}; should be one of the labels {allowed}")
        return self.labels.index(str(value))

    def is_right(self, example: Example, prediction: int) -> bool:
        return bool(int(prediction) == example.target)

    def stored(self, prediction: int) -> dict[str, Any]:
        return {"answer": self.labels[prediction]}


@dataclass(frozen=True)
class TableGrounding(TableTask):
    """Boxes in pixels, x1 y1 x2 y2: a list of four numbers in JSON, or in CSV the numbers with spaces between them."""

    def examples(self, folder: Path, split: str) -> list[Example]:
        found = super().examples(folder, split)
        boxes = np.array([example.target for example in found if example.target is not None])
        path = find_file(folder, dict(self.tables)[split])
        check_pixels(boxes, f"{path}: all boxes of the column {self.columns.box}", "x1 y1 x2 y2 in pixels")
        return found

    def target(self, row: dict[str, Any], where: str) -> tuple[float, ...] | None:
        value = row.get(self.columns.box)
        if value in (None, ""):
            return None
        try:
            box = tuple(map(float, value.split() if isinstance(value, str) else value))
        except (TypeError, ValueError):
            box = ()
        if len(box) != 4 or not all(map(is_number, box)) or box[2] <= box[0] or box[3] <= box[1]:
            raise UserError(f"{where}: {self.columns.box} is {shown(value)}; should be x1 y1 x2 y2 in pixels")
        return box

    def is_right(self, example: Example, prediction: np.ndarray) -> bool:
        """As for the paper's referring expressions: the IoU is above 0.5."""
        return bool(iou_with_box(prediction, example.target)[0] > IOU_CORRECT)

    def stored(self, prediction: np.ndarray) -> dict[str, Any]:
        return {"box": np.asarray(prediction).tolist()}


def _text(row: dict[str, Any], column: str, where: str) -> str:
    """The value of a column as text, not empty."""
    if column not in row:
        raise UserError(f"{where}: has no column {column}; it has {', '.join(map(str, row))}")
    value = row[column]
    if not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"{where}: {column} is {shown(value)}; should be a text")
    return str(value)


def read_task_file(path: str | Path, free_token: int) -> TableTask:
    """The task that a TOML file describes; the name of the file without suffix is that of the task.

    Args:
        path: the file.
        free_token: its task token if the file has none.

    Raises:
        UserError: the file does not exist or does not describe a task.
    """
    path = Path(path)
    refuse_special_file(path)
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
        known = msgspec.convert(value, TaskFile)
    except FileNotFoundError:
        raise UserError(
            f"{path}: not found; it should be a TOML file that describes a task (docs/own_task.md)"
        ) from None
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:  # ValueError: also of TOML
        raise UserError(f"{path}: does not describe a task ({reason_of(error)}); see docs/own_task.md") from None
    name, labels = path.stem, tuple(known.labels)
    if problem := _problem(name, known):
        raise UserError(f"{path}: {problem}; see docs/own_task.md")
    settings: dict[str, Any] = {
        "name": name,
        "title": known.title or name,
        "group": GROUP,
        "token": known.token or free_token,
        "max_tokens": known.max_tokens,
        "batch_size": known.batch_size,
        "lr": known.lr,
        "images": known.images,
        "splits": tuple(known.splits),
        "tests": tuple(known.splits)[2:],
        "files": tuple(known.splits.values()),
        "tables": tuple(known.splits.items()),
        "columns": known.columns,
    }
    if known.kind == "grounding":
        return TableGrounding(head=GroundingHead(), **settings)
    if known.kind in LABELLED:
        head = ClassificationHead if known.kind == "labels" else PairClassificationHead
        return TableLabels(head=head(name, labels), **settings)
    training = next(iter(known.splits.values()))
    return TableAnswers(head=AnswerHead(name), at_least=known.min_answer_count, annotated=training, **settings)


def _problem(name: str, known: TaskFile) -> str:
    """What is wrong with a task of this name, or ""."""
    if not NAME.fullmatch(name):
        return f"its name is that of the task, and should have small letters, digits, - and _ only, not {name}"
    if len(known.splits) < 2:
        return f"[splits] has {', '.join(known.splits) or 'nothing'}; should have two or more, training and validation"
    for split, file in known.splits.items():
        if Path(file).suffix not in SUFFIXES or Path(file).name != file:
            return f"{split} is {file}; should be the name of a file in DATA/{name}, with {' or '.join(SUFFIXES)}"
    if known.kind in LABELLED and (len(known.labels) < 2 or len(set(known.labels)) < len(known.labels)):
        return f"labels should be two or more different names, not {shown(known.labels)}"
    if known.kind not in LABELLED and known.labels:
        return f"labels are only for the kinds {' and '.join(LABELLED)}, not for {known.kind}"
    return ""
