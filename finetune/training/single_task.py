"""Single-task fine-tuning: the hooks that the training loop (pretrain.engine.trainer) calls."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from finetune.config import StConfig
from finetune.data.task_batches import task_steps
from finetune.data.task_collate import TaskBatch, TaskCollator
from finetune.evaluation.scores import describe_scores, watched
from finetune.objective.task_pass import TaskPass, means_per_example
from finetune.training.task_validation import Validation
from pretrain.engine.trainer import TrainingRun


@dataclass
class SingleTask(TrainingRun):
    """A single-task run, ready to train from plan.first_step. It is validated at the end of every epoch.

    best: best validation score so far; worse: epochs since then.
    """

    config: StConfig
    work: TaskPass
    training: TaskCollator
    validation: Validation
    best: float = -np.inf
    worse: int = 0

    samples = "examples"

    def steps(self) -> Iterator[list[TaskBatch]]:
        return task_steps(self.training, self.plan, self.config.seed, self.places, pin=self.device.type == "cuda")

    def counts(self, parts: list[TaskBatch]) -> list[int]:
        return [sum(map(len, parts))]

    def means(self, sums: dict[str, float]) -> dict[str, float]:
        return means_per_example(sums) | {"gradient_norm": sums["gradient_norm"] / max(sums["steps"], 1)}

    def describe(self, values: dict) -> str:
        return f"loss {values['loss']:.3f}  score in training {values['score']:.1%}"

    def validate(self, done: int) -> dict:
        """The task's metrics on its validation split, between 0 and 1; `score` repeats the main metric."""
        at_once, workers = self.config.batch_size, self.config.workers
        scores = self.validation.score(self.work, at_once, workers, self.ranks, self.device).summary
        if watched(scores) > self.best:
            self.best, self.worse = watched(scores), 0
        else:
            self.worse += 1
        return scores

    def describe_scores(self, scores: dict) -> str:
        return describe_scores(scores)

    def selection_score(self, scores: dict) -> float:
        return watched(scores)

    @property
    def save_every(self) -> int:
        return self.plan.steps_per_epoch

    def over(self) -> bool:
        return 0 < self.config.patience <= self.worse

    def facts(self, done: int) -> dict:
        return {"best_score": self.best if np.isfinite(self.best) else None, "epochs_without_better": self.worse}
