"""Forward pass and loss of a task's batch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.data.task_batches import MicroBatch
from finetune.data.task_collate import TaskBatch
from finetune.heads.inputs import TaskInputs
from finetune.models.task_model import TaskModel
from finetune.task_types.base import Task
from pretrain.models.precision import Precision
from pretrain.objective.loss_term import at_least_float32

ENGINE_SUMS = ("gradient_norm", "steps")  # what the engine adds to the sums of a pass


def means_per_example(sums: dict[str, float]) -> dict[str, float]:
    """The values of a log line: every sum that TaskPass returns, divided by its number of examples."""
    examples = max(sums["examples"], 1)
    return {name: value / examples for name, value in sums.items() if name not in ("examples", *ENGINE_SUMS)}


class TaskPass(nn.Module):
    """Forward pass and loss on a batch of one task, as Engine calls it.

    Args:
        model: the model.
        task: the task.
        precision: of the matrix products, and the device.
        task_token: number of the task token; None for a model without task tokens.
        contrastive: weight of Head.batch_losses.
    """

    def __init__(
        self, model: TaskModel, task: Task, precision: Precision, task_token: int | None, contrastive: float = 0.0
    ):
        super().__init__()
        self.model, self.task, self.precision, self.task_token = model, task, precision, task_token
        self.contrastive = contrastive

    def forward(self, batch: TaskBatch, denominators: Sequence[int]) -> tuple[Tensor, dict[str, Tensor | int]]:
        """Computes the loss of a batch.

        Args:
            batch: a micro-batch of this rank.
            denominators: one, the number of examples of the step over all ranks and accumulation steps.

        Returns:
            The batch's share of the loss, and sums over its examples, which are logged as means.
        """
        head, inputs, compared = self.task.head, self.inputs(batch), None
        [examples] = denominators
        with self.precision.autocast():
            encoded = self.model.encode(inputs)
            logits = at_least_float32(self.model.logits(encoded, inputs, head))
            if self.contrastive:
                compared = head.batch_losses(self.model.encoder, encoded, batch.target)
        losses = head.losses(logits, batch.target)
        right = head.training_scores(logits.detach(), batch.target)
        sums = {
            "loss": losses.detach().sum(),
            "score": right.sum(),
            "examples": len(batch),
        }
        if compared is not None:
            sums["contrastive"] = compared.detach().sum()
            losses = losses + self.contrastive * compared
        return losses.sum() / max(examples, 1), sums

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.precision.device

    def task_of(self, part: TaskBatch) -> str:
        """The name of the task that a micro-batch belongs to."""
        return self.task.name

    def inputs(self, batch: TaskBatch) -> TaskInputs:
        return batch.inputs(self.task_token, self.precision.dtype)

    def logits(self, batch: TaskBatch) -> Tensor:
        """The logits of the task's head, at least float32; their shape is the head's."""
        inputs = self.inputs(batch)
        with self.precision.autocast():
            return at_least_float32(self.model(inputs, self.task.head))


class MultiTaskPass(nn.Module):
    """Forward pass and loss on a micro-batch of one of several tasks.

    loss_factors: factor on each task's loss: its learning rate of table 8, relative to the lowest, as in the reference
        implementation. With AdamW it weights the tasks against each other on the parameters that they share; on those
        that one task alone uses, AdamW cancels it.
    """

    def __init__(self, passes: list[TaskPass], loss_factors: list[float]):
        super().__init__()
        self.model, self.precision = passes[0].model, passes[0].precision
        self.passes = dict(enumerate(passes))  # a plain dict, so the model is registered once
        self.loss_factors = loss_factors

    def forward(
        self, part: MicroBatch, denominators: Sequence[int], weights: Sequence[float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | int]]:
        """As TaskPass.forward, with the prefix TASK/ on the names of the sums.

        Args:
            part: micro-batch of a task step.
            denominators: the numbers of examples of the task steps of the iteration; further ones are not used.
            weights: further factors on the losses of the task steps of the iteration.
        """
        task_pass = self.passes[part.task]
        loss, sums = task_pass(part.batch, [denominators[part.task_step]])
        loss = loss * self.loss_factors[part.task]
        if weights is not None:
            loss = loss * weights[part.task_step]
        return loss, {f"{task_pass.task.name}/{name}": v for name, v in sums.items()}

    def task_of(self, part: MicroBatch) -> str:
        """The name of the task that a micro-batch belongs to."""
        return self.passes[part.task].task.name
