"""Methods that weight the losses: the sum, uncertainty weighting, dynamic weight average, and FAMO."""

import math
from collections.abc import Sequence

from finetune.balancing.base import LossWeighting, TaskSteps
from finetune.balancing.learned_numbers import LearnedNumbers

LEARNING_RATE = 0.025  # of learned weights: FAMO's in its paper, also used for uncertainty weighting


class Sum(LossWeighting):
    """The sum of the losses."""

    def weights(self, steps: TaskSteps) -> list[float]:
        return [1.0] * len(steps.names)


class Uncertainty(LossWeighting):
    """Uncertainty weighting (Kendall et al. 2018): minimises exp(-s) / 2 * loss + s / 2 over s, the log variance.

    The weight of a task is exp(-s) / 2, which tends to 1 / (2 loss).
    """

    def __init__(self, seed: int = 0):
        super().__init__(seed)
        self.log_variances = LearnedNumbers(0.0, LEARNING_RATE)

    def weights(self, steps: TaskSteps) -> list[float]:
        return [math.exp(-self.log_variances[name]) / 2 for name in steps.names]

    def observe(self, steps: TaskSteps, after: Sequence[float]) -> None:
        losses = mean_by_task(steps.names, steps.losses)
        self.log_variances.update(
            {name: (1 - math.exp(-self.log_variances[name]) * loss) / 2 for name, loss in losses.items()}
        )

    def state(self) -> dict:
        return self.log_variances.state()

    def restore(self, state: dict) -> None:
        self.log_variances.restore(state)


class DynamicWeightAverage(LossWeighting):
    """Dynamic weight average (Liu et al. 2019): a task whose loss falls more slowly has a larger weight.

    The weights are a softmax of the ratios of a task's mean losses in its last two periods, times the number of tasks.
    A period is PERIOD steps of the task; the paper's is an epoch, and the tasks here have epochs of different lengths.
    """

    PERIOD = 20
    TEMPERATURE = 2.0

    def __init__(self, seed: int = 0):
        super().__init__(seed)
        self.averages: dict[str, list[float]] = {}  # mean losses of the last two periods, the older one first
        self.current: dict[str, list[float]] = {}  # losses of the period that has not ended

    def weights(self, steps: TaskSteps) -> list[float]:
        return [len(steps.names) * share for share in softmax([self._ratio(n) / self.TEMPERATURE for n in steps.names])]

    def _ratio(self, name: str) -> float:
        known = self.averages.get(name, [])
        return known[1] / known[0] if len(known) == 2 else 1.0

    def observe(self, steps: TaskSteps, after: Sequence[float]) -> None:
        for name, loss in mean_by_task(steps.names, steps.losses).items():
            losses = self.current.setdefault(name, [])
            losses.append(loss)
            if len(losses) == self.PERIOD:
                self.averages[name] = [*self.averages.get(name, []), sum(losses) / len(losses)][-2:]
                losses.clear()

    def state(self) -> dict:
        return {"averages": self.averages, "current": self.current}

    def restore(self, state: dict) -> None:
        self.averages, self.current = state["averages"], state["current"]


class Famo(LossWeighting):
    """Fast adaptive multitask optimization (Liu et al. 2023): lowers the logarithms of the losses at equal rates.

    A step minimises the sum of z log(loss), where z is a softmax of learned numbers, with its weights z / loss scaled
    to a convex combination of the gradients; then the numbers are updated by the decrease of every logarithm in the
    step. Hyperparameters of algorithm 2 of the paper.
    """

    needs_losses = True
    needs_losses_after = True
    EPSILON = 1e-8
    WEIGHT_DECAY = 1e-3

    def __init__(self, seed: int = 0):
        super().__init__(seed)
        self.logits = LearnedNumbers(0.0, LEARNING_RATE, self.WEIGHT_DECAY)

    def weights(self, steps: TaskSteps) -> list[float]:
        shares = softmax([self.logits[name] for name in steps.names])
        raw = [share / (loss + self.EPSILON) for share, loss in zip(shares, steps.losses, strict=True)]
        return [value / sum(raw) for value in raw]

    def observe(self, steps: TaskSteps, after: Sequence[float]) -> None:
        before, after = (
            {name: math.log(loss + self.EPSILON) for name, loss in mean_by_task(steps.names, losses).items()}
            for losses in (steps.losses, after)
        )
        decrease = {name: before[name] - after[name] for name in before}
        shares = dict(zip(before, softmax([self.logits[name] for name in before]), strict=True))
        mean = sum(shares[name] * decrease[name] for name in before)
        self.logits.update({name: shares[name] * (decrease[name] - mean) for name in before})

    def state(self) -> dict:
        return self.logits.state()

    def restore(self, state: dict) -> None:
        self.logits.restore(state)


def softmax(values: Sequence[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def mean_by_task(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Task -> mean of its values, in the order of the first ones."""
    found: dict[str, list[float]] = {}
    for name, value in zip(names, values, strict=True):
        found.setdefault(name, []).append(value)
    return {name: sum(of_task) / len(of_task) for name, of_task in found.items()}
