"""Forward pass and loss of a task's batch."""

import torch
from torch import Tensor, nn

from finetune.data.task_batches import MicroBatch
from finetune.data.task_collate import TaskBatch
from finetune.heads.inputs import TaskInputs
from finetune.models.task_model import TaskModel
from finetune.task_types.base import Task
from pretrain.models.precision import Precision

ENGINE_SUMS = ("gradient_norm", "steps")  # what the engine adds to the sums of a pass


def means_per_example(sums: dict[str, float]) -> dict[str, float]:
    """The values of a log line: every sum that TaskPass returns, divided by its number of examples."""
    examples = max(sums["examples"], 1)
    return {name: value / examples for name, value in sums.items() if name not in ("examples", *ENGINE_SUMS)}


class TaskPass(nn.Module):
    """Forward pass and loss on a batch of one task, as Engine calls it.

    token: number of the task token, None for a model without task tokens.
    """

    def __init__(self, model: TaskModel, task: Task, precision: Precision, token: int | None):
        super().__init__()
        self.model, self.task, self.precision, self.token = model, task, precision, token

    def forward(self, batch: TaskBatch, counts: list[int]) -> tuple[Tensor, dict[str, Tensor | int]]:
        """(the batch's share of the loss, sums for the log). counts: their last element is the global batch size.

        Every sum is logged as a mean over the examples.
        """
        scores = self.scores(batch)
        losses = self.task.head.losses(scores, batch.target)
        right = self.task.head.training_scores(scores.detach(), batch.target)
        numbers = {
            "loss": losses.detach().sum(),
            "score": right.sum(),
            "examples": len(batch),
        }
        return losses.sum() / max(counts[-1], 1), numbers

    def task_of(self, part: TaskBatch) -> str:
        """The name of the task that a micro-batch belongs to."""
        return self.task.name

    def inputs(self, batch: TaskBatch) -> TaskInputs:
        return batch.inputs(self.token, self.precision.dtype)

    def scores(self, batch: TaskBatch) -> Tensor:
        inputs = self.inputs(batch)
        with self.precision.autocast():
            scores = self.model(inputs, self.task.head)
        return scores if scores.dtype == torch.float64 else scores.float()


class MultiTaskPass(nn.Module):
    """Forward pass and loss on a micro-batch of one of several tasks.

    scales: factor on each task's loss, which gives each task its own learning rate with a single optimizer.
    """

    def __init__(self, passes: list[TaskPass], scales: list[float]):
        super().__init__()
        self.model, self.precision = passes[0].model, passes[0].precision
        self.passes, self.scales = dict(enumerate(passes)), scales  # a plain dict, so the model is registered once

    def forward(self, part: MicroBatch, counts: list[int]) -> tuple[Tensor, dict[str, Tensor | int]]:
        """As TaskPass.forward, with the prefix TASK/ on the names of the sums. counts: examples of each task step."""
        work = self.passes[part.task]
        loss, numbers = work(part.batch, [counts[part.number]])
        return loss * self.scales[part.task], {f"{work.task.name}/{name}": v for name, v in numbers.items()}

    def task_of(self, part: MicroBatch) -> str:
        """The name of the task that a micro-batch belongs to."""
        return self.passes[part.task].task.name
