"""What a training step of a task does with a batch."""

import torch
from torch import Tensor, nn

from finetune.batch import TaskBatch
from finetune.heads import TaskInputs, TaskModel
from finetune.losses import example_losses, training_scores
from finetune.sources import Turn
from finetune.task import Task
from pretrain.step import Precision


class TaskPass(nn.Module):
    """A model's pass over a batch of one task, as Engine takes it. token: the task's, None in a model without."""

    def __init__(self, model: TaskModel, task: Task, precision: Precision, token: int | None):
        super().__init__()
        self.model, self.task, self.precision, self.token = model, task, precision, token

    def forward(self, batch: TaskBatch, counts: list[int]) -> tuple[Tensor, dict[str, Tensor | int]]:
        """(the batch's part of the training loss, numbers for the log). counts: examples of the whole global batch."""
        scores = self.scores(batch)
        losses = example_losses(self.task.head, scores, batch.target)
        right = training_scores(self.task.head, scores.detach(), batch.target)
        numbers = {"loss": losses.detach().sum(), "score": right.sum(), "examples": len(batch)}
        return losses.sum() / max(counts[-1], 1), numbers

    def task_of(self, part: TaskBatch) -> str:
        """The name of the task of a part of a step."""
        return self.task.name

    def inputs(self, batch: TaskBatch) -> TaskInputs:
        return batch.inputs(self.token, self.precision.dtype)

    def scores(self, batch: TaskBatch) -> Tensor:
        inputs = self.inputs(batch)
        with self.precision.autocast():
            scores = self.model(inputs, self.task.head)
        return scores if scores.dtype == torch.float64 else scores.float()


class MultiTaskPass(nn.Module):
    """A model's pass over a turn of one of several tasks. scales: of each task's loss, through which it learns at its
    own rate with one optimizer."""

    def __init__(self, passes: list[TaskPass], scales: list[float]):
        super().__init__()
        self.model, self.precision = passes[0].model, passes[0].precision
        self.passes, self.scales = dict(enumerate(passes)), scales  # a dict: the model is registered once

    def forward(self, turn: Turn, counts: list[int]) -> tuple[Tensor, dict[str, Tensor | int]]:
        """The same as TaskPass, numbers under TASK/; counts: of each turn of the step."""
        work = self.passes[turn.task]
        loss, numbers = work(turn.batch, [counts[turn.number]])
        return loss * self.scales[turn.task], {f"{work.task.name}/{name}": v for name, v in numbers.items()}

    def task_of(self, part: Turn) -> str:
        """The name of the task of a part of a step."""
        return self.passes[part.task].task.name
