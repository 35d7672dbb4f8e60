"""Predictions of examples with their scores, and the choice of those to show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from finetune.annotations.boxes import image_size
from finetune.annotations.example import Example
from finetune.data.task_collate import TaskCollator
from finetune.heads.base import Scene
from finetune.inference.decoding import Prediction, prediction
from finetune.inference.model_loader import ModelLoader, OpenedTask
from finetune.inference.predictions import decoded_batches, predict
from finetune.objective.task_pass import TaskPass
from finetune.task_types.base import Task
from shards.common.dist_info import ALONE
from shards.common.errors import UserError
from shards.common.progress_bar import progress_bar

RIGHT_ABOVE = 0.5  # a prediction with a higher score counts as correct
TOP = 5  # predictions per example on the page

Item = TypeVar("Item")


@dataclass(frozen=True)
class JudgedExample:
    """An example with its prediction and score.

    number: of the example in its split; value: score between 0 and 1, the main metric of the task; metric: its name.
    """

    number: int
    example: Example
    prediction: Prediction
    value: float
    metric: str


def judge(task_pass: TaskPass, collator: TaskCollator, batch_size: int) -> list[JudgedExample]:
    """Predicts and scores all examples of a collator."""
    task, examples = task_pass.task, collator.examples
    if task.head.ranks_images:
        official = predict(task_pass, collator, batch_size, 0, ALONE)
        scene = Scene(list(dict.fromkeys(example.images[0] for example in examples)), np.empty((0, 4)), (1.0, 1.0))
        predictions = [prediction(task, torch.from_numpy(row), scene, None, TOP) for row in official]
    else:
        found = _judged(task_pass, collator, batch_size)
        found = progress_bar(found, desc=task.title, total=len(examples), unit=" examples")
        predictions, official = zip(*found, strict=True)
    metric, values = next(iter(task.scores(examples, official).items()))
    judged = zip(range(len(examples)), examples, predictions, values.tolist(), strict=True)
    return [JudgedExample(*of, metric) for of in judged]


def _judged(task_pass: TaskPass, collator: TaskCollator, batch_size: int) -> Iterator[tuple[Prediction, object]]:
    """(prediction, the same in the form of `Task.scores`) of every example."""
    limit, vocabulary = collator.limits.max_regions, collator.vocabulary
    with decoded_batches(task_pass, collator, batch_size, 0, ALONE) as batches:
        for part, logits, decoded in batches:
            official = task_pass.task.head.to_predictions(decoded, vocabulary)
            for row, example, one in zip(logits, collator.examples[part], official, strict=True):
                sample = collator.regions[example.images[0]]
                size = image_size(example, sample)
                scene = Scene(example.images, sample.boxes[:limit], size, example.candidates)
                yield prediction(task_pass.task, row, scene, vocabulary, TOP), one


def choose_examples(scored: Sequence[JudgedExample], count: int) -> list[JudgedExample]:
    """The `count` most confident wrong predictions, then `count` correct ones spread over all confidences; both in
    descending order of confidence."""
    by_confidence = sorted(scored, key=lambda one: (-one.prediction.confidence[0], one.number))
    wrong = [one for one in by_confidence if one.value <= RIGHT_ABOVE]
    right = [one for one in by_confidence if one.value > RIGHT_ABOVE]
    return wrong[:count] + spread(right, count)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly spaced from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int).tolist()
    return [items[place] for place in places]


def kind_of(task: Task, example: Example) -> str:
    """The official type of an example; if there is none, the first word of a question."""
    first = example.text.split()[0].lower() if example.text.rstrip().endswith("?") else ""
    return task.kind(example) or first


def load_examples(loader: ModelLoader, task: Task, split: str, count: int) -> OpenedTask:
    """Opens a task for the predictions of the first examples of a split.

    Args:
        loader: the run.
        task: the task.
        split: one with public answers.
        count: number of examples.
    """
    opened = loader.open(task, split)
    examples = opened.collator.examples[:count]
    if not task.is_public(examples):
        raise UserError(f"--split {split}: {task.name} has no public answers in this split; choose another one")
    opened.task_pass.model.eval()
    return opened._replace(collator=replace(opened.collator, examples=examples))
