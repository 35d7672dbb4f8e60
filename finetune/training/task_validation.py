"""Validation of a task during training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune.annotations.example import Example
from finetune.config import RANKED_CAPTIONS
from finetune.data.hard_negatives import RetrievalNegatives
from finetune.data.task_batches import in_order
from finetune.data.task_collate import TaskCollator
from finetune.data.task_data import CollatorSettings, TaskData
from finetune.evaluation.scores import FOUR_WAY, TaskScore, score_task
from finetune.inference.predictions import predict, predicted_on_all_ranks
from finetune.objective.task_pass import TaskPass
from shards.common.dist_info import Ranks

SHORTER_VALIDATION = "--validate_on N validates on the first N examples"  # see TrainingTask.shorter_validation


@dataclass(frozen=True)
class Validation:
    """The validation examples of a task.

    Retrieval is scored twice. R@k ranks all images for every caption, which is affordable for few captions only; its
    error is then several points, too much for checkpoint selection and stop-and-go. These use the 4-way accuracy on
    all captions: each against the same three negatives in every validation.

    Args:
        examples: examples for the task's metrics.
        four_way: for retrieval, all captions with their negatives, else None.
    """

    examples: TaskCollator
    four_way: TaskCollator | None

    def __len__(self) -> int:
        return len((self.four_way or self.examples).examples)

    def score(self, task_pass: TaskPass, batch_size: int, workers: int, ranks: Ranks) -> TaskScore:
        """The task's metrics, for retrieval with 4-way accuracy; the same on every rank."""
        predictions = predict(task_pass, self.examples, batch_size, workers, ranks)
        score = score_task(task_pass.task, self.examples.examples, predictions)
        if self.four_way is not None:
            right = four_way_right(task_pass, self.four_way, batch_size, workers, ranks)
            score.metrics[FOUR_WAY] = float(right.mean())
        return score


def validation_of(
    data: TaskData, examples: Sequence[Example], settings: CollatorSettings, validate_on: int | None, seed: int
) -> Validation:
    """The validation of a task.

    Args:
        data: the data of the task.
        examples: its validation examples.
        settings: as for `TaskData.collator`.
        validate_on: value of --validate_on, for retrieval the number of captions that are ranked.
        seed: random seed of retrieval's negatives.
    """
    if not data.task.head.ranks_images:
        return Validation(data.collator(examples, settings), None)
    ranked = data.collator(examples[: validate_on or RANKED_CAPTIONS], settings)
    negatives = RetrievalNegatives(examples, data.regions, seed, data.root)
    return Validation(ranked, replace(ranked, examples=examples, negatives=negatives))


def four_way_right(
    task_pass: TaskPass, collator: TaskCollator, batch_size: int, workers: int, ranks: Ranks
) -> np.ndarray:
    """float64 (captions,): 1 if a caption and its image score above their three negatives, else 0.

    The negatives are those of epoch 0, a function of the seed and the number of the caption.
    """

    def on_this_rank() -> np.ndarray:
        right = np.zeros(len(collator.examples))
        with in_order(collator, batch_size, workers, ranks, pin=task_pass.device.type == "cuda") as batches:
            for part, batch in batches:
                logits = task_pass.logits(batch.to(task_pass.device))
                right[part] = task_pass.task.head.training_scores(logits, None).cpu()
        return right

    return predicted_on_all_ranks(task_pass, on_this_rank, ranks)
