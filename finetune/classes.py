"""Choosing one of a few labels: what NLVR2 and SNLI-VE share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.task import Example, Task


@dataclass(frozen=True)
class LabelTask(Task):
    """Predictions: labels, int (n,). labels: their names in the order of the published heads."""

    labels: tuple[str, ...] = ()

    def right(self, examples: Sequence[Example], predictions: Sequence[int]) -> np.ndarray:
        """float (n,): 1 where the label is the right one."""
        return np.array([float(p == e.target) for e, p in zip(examples, predictions, strict=True)])
