"""The interference of tasks: how similar their gradients are, and how a step of one changes the loss of another.

A positive cosine similarity of two gradients means that a small step of one task lowers the loss of the other, too.
The gradients of two batches of one task differ, so that no similarity can be expected to reach 1: that of a task with
itself, on two batches, is measured as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy  # imports its parts when they are used; some take a second
import torch

from finetune.data.task_collate import TaskBatch
from finetune.gradients.task_gradients import TaskGradients, part_of, shared_parameters
from finetune.objective.task_pass import TaskPass


@dataclass(frozen=True)
class FixedBatches:
    """A task with the batches on which it is measured, on the CPU."""

    task_pass: TaskPass
    batches: list[TaskBatch]


@dataclass(frozen=True)
class Measured:
    """The measurements of T tasks on B batches each, and of steps on A of them (look-ahead), float64.

    Attributes:
        products: part of the model -> (B, T, T), scalar products of the gradients of the mean loss.
        repeated: part of the model -> (B - 1, T), scalar products of a task's gradients on two consecutive batches.
        losses: (B, T).
        before: (A, T), losses on the next batch, before a step.
        after: (A, T, T), losses on it after a step of the task in the second axis, of the task in the third.
    """

    products: dict[str, np.ndarray]
    repeated: dict[str, np.ndarray]
    losses: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def parts(self) -> list[str]:
        return list(self.products)

    def norms(self, part: str) -> np.ndarray:
        """(B, T): norms of the gradients."""
        return np.sqrt(np.diagonal(self.products[part], axis1=1, axis2=2))

    def similarities(self, part: str) -> np.ndarray:
        """(B, T, T): cosine similarities; on the diagonal those of a task with itself on the next batch.

        NaN where a gradient is zero, and on the diagonal of the last batch.
        """
        norms = self.norms(part)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = self.products[part] / (norms[:, :, None] * norms[:, None, :])
            own = self.repeated[part] / (norms[:-1] * norms[1:])
        tasks = np.arange(norms.shape[1])
        found[:, tasks, tasks] = np.nan
        found[:-1, tasks, tasks] = own
        return found

    def expected_similarity(self, part: str) -> np.ndarray:
        """(T, T): cosine similarity of the expected gradients, without the noise of the batches; diagonal 1.

        Products of gradients on different batches are free of the noise's squared norm: those of two tasks estimate the
        numerator, those of a task on two batches its squared norm. NaN where such a squared norm is not positive: the
        batches are then too few, or too small.
        """
        squared = self.repeated[part].mean(0) if len(self.repeated[part]) else np.full(self.losses.shape[1], np.nan)
        norms = np.sqrt(np.where(squared > 0, squared, np.nan))
        found = self.products[part].mean(0) / (norms[:, None] * norms[None, :])
        np.fill_diagonal(found, 1.0)
        return found

    def affinities(self) -> np.ndarray:
        """(A, T, T): 1 - loss after / loss before; row: the task whose step it was, column: the task whose loss it is.

        Positive: the step lowers the loss (Fifty et al. 2021, "Efficiently Identifying Task Groupings", equation 1).
        """
        return 1 - self.after / self.before[:, None, :]


def mean_and_margin(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the first axis without NaN, and half the width of its confidence interval by Student's t.

    The margin is NaN with fewer than two values, the mean with none.
    """
    count = np.isfinite(values).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, 0) / count
        deviation = np.sqrt(np.nansum((values - mean) ** 2, 0) / (count - 1))
        margin = scipy.stats.t.ppf((1 + level) / 2, np.maximum(count - 1, 1)) * deviation / np.sqrt(count)
    return np.where(count > 0, mean, np.nan), np.where(count > 1, margin, np.nan)


def clustered_order(similarity: np.ndarray) -> list[int]:
    """The order of the tasks in which similar ones are neighbours: average linkage, optimal order of the leaves.

    similarity: (T, T); NaN counts as 0, and the two directions of an affinity are averaged.
    """
    count = len(similarity)
    if count < 3:
        return list(range(count))
    filled = np.nan_to_num(similarity)
    distance = np.max(filled) - (filled + filled.T) / 2
    np.fill_diagonal(distance, 0)
    distances = scipy.spatial.distance.squareform(distance, checks=False)
    tree = scipy.cluster.hierarchy.linkage(distances, "average", optimal_ordering=True)
    return scipy.cluster.hierarchy.leaves_list(tree).tolist()


def measure(
    tasks: Sequence[FixedBatches], look_ahead: int, step: float, report: Callable[[int], None] = lambda done: None
) -> Measured:
    """Measures the interference of tasks that share one model, at its present weights, which are the same afterwards.

    Besides the model it needs one gradient of the shared parameters per task, and for look-ahead their weights once
    more. Dropout is off.

    Args:
        tasks: the tasks, with the same number of batches each.
        look_ahead: number of batches on which steps are tried, 0 for none.
        step: length of a step relative to the norm of the shared weights, the same for every task.
        report: called with the number of batches that are done.
    """
    model = tasks[0].task_pass.model.eval()
    named = shared_parameters(model)
    parameters = list(named.values())
    gradients = TaskGradients(parameters, len(tasks))
    before, after, count = [], [], len(tasks[0].batches)

    def loss_and_gradients(row: int, number: int) -> float:
        model.zero_grad()
        loss = _loss(tasks[row].task_pass, tasks[row].batches[number])
        loss.backward()
        return loss.item()

    def try_steps(number: int) -> None:
        model.zero_grad()
        if number < look_ahead:
            nexts = [(task.task_pass, task.batches[(number + 1) % count]) for task in tasks]
            before.append(_losses(nexts))
            after.append(_losses_after_steps(parameters, gradients, nexts, step))
        report(number + 1)

    measured = gradient_products(count, len(tasks), gradients, list(map(part_of, named)), loss_and_gradients, try_steps)
    shape = len(before), len(tasks)
    return replace(measured, before=np.reshape(before, shape), after=np.reshape(after, (*shape, len(tasks))))


def gradient_products(
    batches: int,
    tasks: int,
    gradients: TaskGradients,
    parts: Sequence[str],
    loss_and_gradients: Callable[[int, int], float],
    after_batch: Callable[[int], None] = lambda number: None,
) -> Measured:
    """The scalar products of the tasks' gradients on each of their batches, without steps of look-ahead.

    Args:
        batches, tasks: their numbers.
        gradients: room for a gradient of every task.
        parts: the part of the model of every parameter.
        loss_and_gradients: function that replaces the gradients of the parameters by those of (task, batch) and returns
            the loss.
        after_batch: called with the number of a batch when `gradients` has those of all tasks on it.
    """
    products, repeated, losses = [], [], []
    for number in range(batches):
        again, of_batch = [], []
        for row in range(tasks):
            of_batch.append(loss_and_gradients(row, number))
            if number:
                again.append(gradients.products_with(row, parts))
            gradients.keep(row)
        losses.append(of_batch)
        products.append(gradients.gramians(range(tasks), parts))
        repeated += [again] if number else []
        after_batch(number)
    return Measured(
        products={part: np.array([of[part].numpy() for of in products]) for part in products[0]},
        repeated={
            part: np.array([[float(of[part]) for of in again] for again in repeated]).reshape(-1, tasks)
            for part in products[0]
        },
        losses=np.array(losses),
        before=np.empty((0, tasks)),
        after=np.empty((0, tasks, tasks)),
    )


def _loss(task_pass: TaskPass, batch: TaskBatch) -> torch.Tensor:
    """The mean loss of a batch."""
    return task_pass(batch.to(task_pass.device), [len(batch)])[0]


@torch.no_grad()
def _losses(of_tasks: Sequence[tuple[TaskPass, TaskBatch]]) -> list[float]:
    return [_loss(task_pass, batch).item() for task_pass, batch in of_tasks]


@torch.no_grad()
def _losses_after_steps(parameters, gradients: TaskGradients, nexts, step: float) -> list[list[float]]:
    """For every task the losses of all tasks after a step along its gradient."""
    weights = [parameter.clone() for parameter in parameters]
    length = step * torch.nn.utils.get_total_norm(weights)
    found = []
    for row in range(len(nexts)):
        gradient = gradients.gradient(row)
        factor = length / torch.nn.utils.get_total_norm(gradient)
        for parameter, direction in zip(parameters, gradient, strict=True):
            parameter.sub_(direction * factor)
        found.append(_losses(nexts))
        torch._foreach_copy_(parameters, weights)
    return found
