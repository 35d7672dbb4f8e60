"""One learned number per task, for methods that learn their weights; a run stores them in its checkpoints."""

import math
from collections.abc import Mapping


class LearnedNumbers:
    """Numbers by the names of tasks, each learned by Adam. A task that does not train keeps its number and moments.

    Args:
        initial: value of a new task.
        lr: learning rate.
        weight_decay: added to the gradient, times the value.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, initial: float, lr: float, weight_decay: float = 0.0):
        self.initial, self.lr, self.weight_decay = initial, lr, weight_decay
        self._values: dict[str, float] = {}
        self._moments: dict[str, tuple[float, float, int]] = {}  # first moment, second moment, number of updates

    def __getitem__(self, name: str) -> float:
        return self._values.get(name, self.initial)

    def __setitem__(self, name: str, value: float) -> None:
        self._values[name] = value

    def update(self, gradients: Mapping[str, float]) -> None:
        """One step of Adam on the numbers of some tasks."""
        for name, gradient in gradients.items():
            value = self[name]
            gradient += self.weight_decay * value
            first, second, count = self._moments.get(name, (0.0, 0.0, 0))
            count += 1
            first = self.BETA1 * first + (1 - self.BETA1) * gradient
            second = self.BETA2 * second + (1 - self.BETA2) * gradient**2
            self._moments[name] = first, second, count
            deviation = math.sqrt(second / (1 - self.BETA2**count)) + self.EPSILON
            self[name] = value - self.lr * first / (1 - self.BETA1**count) / deviation

    def state(self) -> dict:
        return {"values": self._values, "moments": self._moments}

    def restore(self, state: dict) -> None:
        self._values = {name: float(value) for name, value in state["values"].items()}
        self._moments = {name: (float(m), float(v), int(n)) for name, (m, v, n) in state["moments"].items()}
