"""One optimizer step for all tasks of an iteration, as a method of finetune.balancing combines them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.balancing.base import Balance, GradientCombination, LossWeighting, TaskSteps
from finetune.data.task_batches import MicroBatch
from finetune.gradients.task_gradients import ALL_PARTS, TaskGradients
from pretrain.engine.distributed import all_reduce_sum, on_first
from pretrain.engine.step import Engine, MetricSums


@dataclass
class BalancedStep:
    """Takes the optimizer step of an iteration.

    The weights are chosen on the first rank, from losses and gradients that are summed over all ranks, and sent to the
    others, so that they are equal everywhere.

    Args:
        method: the method; on ranks other than the first only its type is used.
        gradients: of the shared parameters, a row per task step; None for a method that does not keep gradients.
        contrastive: weight of the contrastive term in the losses, 0 without.
    """

    method: Balance
    gradients: TaskGradients | None
    contrastive: float

    def step(
        self,
        engine: Engine,
        iteration: int,
        by_task: list[list[MicroBatch]],
        sums: MetricSums,
        denominators: list[int],
    ) -> None:
        """Takes one optimizer step.

        Args:
            engine: the engine of a MultiTaskPass.
            iteration: number of the iteration.
            by_task: this rank's micro-batches of every task step, of which there is at least one.
            sums: get the metric sums, and TASK/weight.
            denominators: of MultiTask.denominators, summed over all ranks.
        """
        run = _Iteration(engine, iteration, by_task, denominators, self.contrastive)
        if isinstance(self.method, LossWeighting):
            run.weight_losses(self.method, sums)
        else:
            run.combine_gradients(self.method, self.gradients, sums)


@dataclass
class _Iteration:
    """The task steps of one iteration; see BalancedStep."""

    engine: Engine
    iteration: int
    by_task: list[list[MicroBatch]]
    denominators: list[int]
    contrastive: float

    def __post_init__(self):
        self.names = [self.engine.replica.task_of(parts[0]) for parts in self.by_task]

    def weight_losses(self, method: LossWeighting, sums: MetricSums) -> None:
        """One backward pass over the weighted losses, whose gradients are reduced over the ranks once."""
        engine, parts = self.engine, [part for of_step in self.by_task for part in of_step]
        losses = self._losses(self._sums_without_gradients()) if method.needs_losses else []
        weights = on_first(engine.ranks, lambda: method.weights(TaskSteps(self.iteration, self.names, losses)))
        added = engine.backward(parts, self.denominators, weights)
        engine.update(self.iteration, added | self._logged(weights), sums)
        losses = losses or self._losses(added)
        after = self._losses(self._sums_without_gradients()) if method.needs_losses_after else []
        if engine.ranks.first and all(map(math.isfinite, [*losses, *after])):
            method.observe(TaskSteps(self.iteration, self.names, losses), after)

    def combine_gradients(self, method: GradientCombination, gradients: TaskGradients, sums: MetricSums) -> None:
        """A backward pass per task step, each reduced over the ranks, and the weighted sum of their gradients."""
        engine, rows, added = self.engine, range(len(self.by_task)), Counter()
        shared, of_heads = set(gradients.parameters), []
        for row, parts in zip(rows, self.by_task, strict=True):
            added.update(engine.backward(parts, self.denominators))
            gradients.keep(row)
            of_heads.append([(p, p.grad) for p in engine.model.parameters() if p.grad is not None and p not in shared])
            engine.optimizer.zero_grad()
        gramian = gradients.gramians(rows)[ALL_PARTS]
        if engine.scaler.is_enabled():
            gramian /= engine.scaler.get_scale() ** 2
        losses = self._losses(added)
        steps = TaskSteps(self.iteration, self.names, losses, gramian)
        weights = on_first(engine.ranks, lambda: _finite_weights(method, steps))
        gradients.set_combined(rows, weights)
        for row, of_step in zip(rows, of_heads, strict=True):
            for parameter, gradient in of_step:
                weighted = gradient * weights[row] if method.weighs_heads else gradient
                parameter.grad = weighted if parameter.grad is None else parameter.grad + weighted
        engine.update(self.iteration, dict(added) | self._logged(weights.tolist()), sums)

    @torch.no_grad()
    def _sums_without_gradients(self) -> dict[str, Tensor | int]:
        """The metric sums of a forward pass; dropout is that of the backward pass, a function of the examples."""
        sums = Counter()
        for part in (part for of_step in self.by_task for part in of_step):
            sums.update(self.engine.replica(part, self.denominators)[1])
        return dict(sums)

    def _losses(self, sums: Mapping[str, Tensor | int]) -> list[float]:
        """The mean loss of each task step over all ranks, from this rank's metric sums; waits for the device.

        If a task has several steps in an iteration, it is the mean over all of them.
        """
        examples: dict[str, int] = {}
        for name, count in zip(self.names, self.denominators[: len(self.names)], strict=True):
            examples[name] = examples.get(name, 0) + count
        local = [
            torch.as_tensor(sums[f"{name}/loss"] + self.contrastive * sums.get(f"{name}/contrastive", 0)).double().cpu()
            for name in examples
        ]
        summed = all_reduce_sum(torch.stack(local), self.engine.ranks).tolist()
        means = {name: value / max(examples[name], 1) for name, value in zip(examples, summed, strict=True)}
        return [means[name] for name in self.names]

    def _logged(self, weights: Sequence[float]) -> dict[str, float]:
        """TASK/weight as a sum over this rank's examples, as all values of a task are logged."""
        logged = Counter()
        for name, parts, weight in zip(self.names, self.by_task, weights, strict=True):
            logged[f"{name}/weight"] += weight * sum(map(len, parts))
        return dict(logged)


def _finite_weights(method: GradientCombination, steps: TaskSteps) -> Tensor:
    """The weights of a method; NaN for gradients that are not finite, so that the engine skips the step."""
    if not (steps.gramian.isfinite().all() and all(map(math.isfinite, steps.losses))):
        return torch.full((len(steps.names),), torch.nan, dtype=torch.float64)
    return method.weights(steps).double()
