"""Predictions of examples with their scores, and the choice of those to show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from finetune.config import EvaluateConfig
from finetune.data.task_batches import in_order
from finetune.data.task_collate import TaskCollator, image_size
from finetune.inference.decoding import Prediction, prediction, ranked
from finetune.inference.model_loader import open_run
from finetune.inference.predictions import predict
from finetune.objective.task_pass import TaskPass
from finetune.run_dirs.init_weights import Start
from finetune.task_types.base import Example, Task
from shards.common.dist_info import ALONE
from shards.common.errors import UserError
from shards.common.progress_bar import progress_bar

RIGHT = 0.5  # a prediction with a higher score counts as correct
TOP = 5  # predictions per example on the page


@dataclass(frozen=True)
class JudgedExample:
    """An example with its prediction and score. number: of the example in its split; value: score between 0 and 1."""

    number: int
    example: Example
    prediction: Prediction
    value: float


def judge(work: TaskPass, collator: TaskCollator, batch_size: int) -> list[JudgedExample]:
    """Predicts and scores all examples of a collator."""
    task, examples = work.task, collator.examples
    if task.head == "retrieval":
        device = work.precision.device
        scores = predict(work, collator, batch_size, 0, ALONE, device)
        images = list(dict.fromkeys(example.images[0] for example in examples))
        predictions = [ranked(task, images, torch.from_numpy(row).softmax(0), TOP) for row in scores]
        official = scores
    else:
        found = _predictions(work, collator, batch_size)
        predictions = list(progress_bar(found, desc=task.title, total=len(examples), unit=" examples"))
        official = [_official(task, one) for one in predictions]
    values = next(iter(task.scores(examples, official).values()))
    return [JudgedExample(*of) for of in zip(range(len(examples)), examples, predictions, values.tolist(), strict=True)]


@torch.no_grad()
def _predictions(work: TaskPass, collator: TaskCollator, batch_size: int) -> Iterator[Prediction]:
    limit = collator.limits.regions
    with in_order(collator, batch_size, 0, ALONE) as batches:
        for part, batch in batches:
            scores = work.scores(batch.to(work.precision.device)).cpu()
            for row, example in zip(scores, collator.examples[part], strict=True):
                sample = collator.regions[example.images[0]]
                regions, size = sample.boxes[:limit], image_size(example, sample)
                yield prediction(work.task, row, TOP, collator.vocabulary, regions, size, example.candidates)


def _official(task: Task, found: Prediction):
    """The most likely prediction in the form of `Task.scores`."""
    if task.head == "regions":
        return found.boxes[0]
    return found.choices[0] if hasattr(task, "vocabulary") else found.numbers[0]


def choose(scored: Sequence[JudgedExample], count: int) -> list[JudgedExample]:
    """The `count` most confident wrong predictions, then `count` correct ones spread over all confidences; both in
    descending order of confidence."""
    by_confidence = sorted(scored, key=lambda one: (-one.prediction.confidence[0], one.number))
    wrong = [one for one in by_confidence if one.value <= RIGHT]
    right = [one for one in by_confidence if one.value > RIGHT]
    spread = np.linspace(0, len(right) - 1, min(count, len(right))).round().astype(int).tolist()
    return wrong[:count] + [right[place] for place in spread]


def kind_of(task: Task, example: Example) -> str:
    """The official type of an example; if there is none, the first word of a question."""
    first = example.text.split()[0].lower() if example.text.rstrip().endswith("?") else ""
    return task.kind(example) or first


def expected_of(task: Task, example: Example) -> tuple[str, tuple | None]:
    """The ground truth: (text, box in pixels of the annotations or None)."""
    if task.head == "regions":
        return "", tuple(example.target)
    if task.head == "candidates":
        return f"candidate {example.target}", example.candidates[example.target]
    if task.head == "retrieval":
        return example.images[0], None
    if hasattr(task, "vocabulary"):
        best = sorted(example.target.items(), key=lambda pair: -pair[1])
        return ", ".join(answer for answer, _ in best[:3]), None
    return task.labels[example.target], None


def load_examples(task: Task, split: str, count: int, of_weights: dict) -> tuple[Start, TaskPass, TaskCollator]:
    """Loads a run for its predictions of the first examples of a split.

    Args:
        task: the task.
        split: one with public answers.
        count: number of examples.
        of_weights: flags of the run (WeightsFlags.of_weights).
    """
    start, work, collator = open_run(EvaluateConfig(split=split, **of_weights), task)
    collator = replace(collator, examples=collator.examples[:count])
    if task.head != "retrieval" and any(example.target is None for example in collator.examples):
        raise UserError(f"--split {split}: {task.name} has no public answers in this split; choose another one")
    work.model.eval()
    return start, work, collator
