"""Single-task fine-tuning, as the training loop sees it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from finetune.config import StConfig
from finetune.data.task_batches import single_task_steps
from finetune.data.task_collate import TaskBatch, TaskCollator
from finetune.evaluation.scores import describe_scores, selection_score
from finetune.objective.task_pass import TaskPass, means_per_example
from finetune.training.task_validation import SHORTER_VALIDATION, Validation
from pretrain.data.batch_schedule import BatchSchedule
from pretrain.data.dataloader import WorkerStatus
from pretrain.engine.training_task import Evaluation, TrainingTask
from shards.common.dist_info import Ranks


@dataclass
class SingleTask(TrainingTask):
    """Training on one task. It is validated at the end of every epoch.

    Attributes:
        task_pass: the model's pass over a batch of the task.
        training: collator of the training examples.
        validation: the validation examples.
        best: best validation score so far.
        worse: epochs since then.
    """

    config: StConfig
    schedule: BatchSchedule
    task_pass: TaskPass
    training: TaskCollator
    validation: Validation
    worker_status: WorkerStatus
    ranks: Ranks
    device: torch.device
    best: float = -np.inf
    worse: int = 0

    unit = "examples"
    shorter_validation = SHORTER_VALIDATION

    @property
    def peak_lr(self) -> float:
        return self.config.lr

    @property
    def save_every(self) -> int:
        return self.schedule.steps_per_epoch

    def batches(self) -> Iterator[list[TaskBatch]]:
        return single_task_steps(
            self.training, self.schedule, self.config.seed, self.worker_status, pin=self.device.type == "cuda"
        )

    def denominators(self, parts: list[TaskBatch]) -> list[int]:
        return [sum(map(len, parts))]

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        return means_per_example(sums) | {"gradient_norm": sums["gradient_norm"] / max(sums["steps"], 1)}

    def describe(self, metrics: dict) -> str:
        return f"loss {metrics['loss']:.3f}  score in training {metrics['score']:.1%}"

    def samples_before(self, step: int) -> int:
        return self.schedule.samples_before(step)

    def evaluate(self, done: int) -> Evaluation:
        """The task's metrics on its validation split, between 0 and 1; `score` repeats the main metric."""
        at_once, workers = self.config.batch_size, self.config.workers
        scores = self.validation.score(self.task_pass, at_once, workers, self.ranks).summary
        if selection_score(scores) > self.best:
            self.best, self.worse = selection_score(scores), 0
        else:
            self.worse += 1
        return Evaluation(scores, describe_scores(scores), selection_score(scores))

    @property
    def stopped_early(self) -> bool:
        return 0 < self.config.patience <= self.worse

    def state(self, done: int) -> dict:
        return {"best_score": self.best if np.isfinite(self.best) else None, "epochs_without_better": self.worse}
