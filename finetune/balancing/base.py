"""The interface of methods that combine the tasks of an iteration into one optimizer step.

A method chooses a weight for each task step of an iteration. There are two kinds: a `LossWeighting` chooses them before
the backward passes, a `GradientCombination` after them, from the scalar products of the tasks' gradients. All of the
published methods here need no more than these products: their result is a weighted sum of the gradients.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class TaskSteps:
    """The n task steps of an iteration, over all ranks and accumulation steps.

    Attributes:
        number: of the iteration.
        names: the task of each step; a task may occur several times.
        losses: mean loss of each step.
        gramian: float64 (n, n) on the CPU, scalar products of the gradients of the shared parameters; None for a
            LossWeighting.
    """

    number: int
    names: Sequence[str]
    losses: Sequence[float] = ()
    gramian: Tensor | None = None


class Balance:
    """A method. It is created on every rank, but only called on the first one, which sends its weights to the others.

    seed: random seed of the run, for methods that make random choices.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def state(self) -> dict:
        """The state for checkpoint.json."""
        return {}

    def restore(self, state: dict) -> None:
        """Restores what `state` returned."""


class LossWeighting(Balance, ABC):
    """Chooses weights of the losses. No gradient is kept, and ranks reduce the gradients once per iteration.

    Attributes:
        needs_losses: `weights` gets the losses, for which the forward passes are run once more, without gradients.
        needs_losses_after: `observe` gets the losses on the same batches after the step as well, by further forward
            passes.
    """

    needs_losses: ClassVar[bool] = False
    needs_losses_after: ClassVar[bool] = False

    @abstractmethod
    def weights(self, steps: TaskSteps) -> list[float]:
        """Factors on the losses of the task steps."""

    def observe(self, steps: TaskSteps, after: Sequence[float]) -> None:
        """Updates the state after the optimizer step.

        Args:
            steps: the task steps with their losses in the step.
            after: the losses after the step; empty without `needs_losses_after`.
        """


class GradientCombination(Balance, ABC):
    """Chooses weights of the gradients, one gradient of the shared parameters per task step is kept until then.

    Attributes:
        weighs_heads: whether the weights also apply to the gradients of the heads; otherwise those are summed.
    """

    weighs_heads: ClassVar[bool] = False

    @abstractmethod
    def weights(self, steps: TaskSteps) -> Tensor:
        """float64 (n,): weights of the gradients, on the CPU. Updates the state."""
