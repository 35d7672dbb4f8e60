"""What a training step of a task does with a batch."""

import torch
from torch import Tensor, nn

from finetune.batch import TaskBatch
from finetune.heads import TaskInputs, TaskModel
from finetune.losses import example_losses, training_scores
from finetune.task import Task
from pretrain.step import Precision


class TaskPass(nn.Module):
    """A model's pass over a batch of one task, as Engine takes it."""

    def __init__(self, model: TaskModel, task: Task, precision: Precision):
        super().__init__()
        self.model, self.task, self.precision = model, task, precision

    def forward(self, batch: TaskBatch, counts: list[int]) -> tuple[Tensor, dict[str, Tensor | int]]:
        """(the batch's part of the training loss, numbers for the log). counts: examples of the whole global batch."""
        scores = self.scores(batch)
        losses = example_losses(self.task.head, scores, batch.target)
        right = training_scores(self.task.head, scores.detach(), batch.target)
        numbers = {"loss": losses.detach().sum(), "score": right.sum(), "examples": len(batch)}
        return losses.sum() / max(counts[-1], 1), numbers

    def inputs(self, batch: TaskBatch) -> TaskInputs:
        token = self.task.token if self.model.encoder.config.task_tokens else None
        return batch.inputs(token, self.precision.dtype)

    def scores(self, batch: TaskBatch) -> Tensor:
        inputs = self.inputs(batch)
        with self.precision.autocast():
            scores = self.model(inputs, self.task.head)
        return scores if scores.dtype == torch.float64 else scores.float()
