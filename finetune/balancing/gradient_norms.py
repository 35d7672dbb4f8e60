"""GradNorm: weights by which all tasks have gradients of similar norms."""

import torch
from torch import Tensor

from finetune.balancing.base import GradientCombination, TaskSteps
from finetune.balancing.learned_numbers import LearnedNumbers
from finetune.balancing.loss_weighting import LEARNING_RATE, mean_by_task


class GradNorm(GradientCombination):
    """GradNorm (Chen et al. 2018): learns weights of the losses.

    The weighted norm of a task's gradient is to be the mean of all, times the relative inverse training rate of the
    task (its loss divided by its first one, relative to the mean over the tasks) to the power of ASYMMETRY. The norm is
    that of all shared parameters; the paper uses the last shared layer, to save time. The weights of an iteration are
    those before the update, and their sum is kept at the number of tasks.
    """

    weighs_heads = True
    ASYMMETRY = 1.5  # alpha of the paper
    SMALLEST = 1e-3  # of a weight, which may not become negative

    def __init__(self, seed: int = 0):
        super().__init__(seed)
        self.learned = LearnedNumbers(1.0, LEARNING_RATE)
        self.first: dict[str, float] = {}  # the first loss of every task

    def weights(self, steps: TaskSteps) -> Tensor:
        chosen = torch.tensor([self.learned[name] for name in steps.names], dtype=torch.float64)
        norms = mean_by_task(steps.names, steps.gramian.diagonal().sqrt().tolist())
        losses = mean_by_task(steps.names, steps.losses)
        for name, loss in losses.items():
            self.first.setdefault(name, loss)
        weighted = {name: self.learned[name] * norm for name, norm in norms.items()}
        mean = sum(weighted.values()) / len(weighted)
        rates = {name: loss / self.first[name] for name, loss in losses.items()}
        typical = sum(rates.values()) / len(rates)
        gradients = {}
        for name, norm in norms.items():
            excess = weighted[name] - mean * (rates[name] / typical) ** self.ASYMMETRY
            gradients[name] = norm * ((excess > 0) - (excess < 0))
        self.learned.update(gradients)
        values = {name: max(self.learned[name], self.SMALLEST) for name in norms}
        for name, value in values.items():
            self.learned[name] = value * len(values) / sum(values.values())
        return chosen

    def state(self) -> dict:
        return self.learned.state() | {"first": self.first}

    def restore(self, state: dict) -> None:
        self.learned.restore(state)
        self.first = state["first"]
