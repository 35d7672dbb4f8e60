"""Base class of classification tasks with few labels: NLVR2 and SNLI-VE."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.annotations.example import Example
from finetune.heads.classification_head import ClassificationHead
from finetune.task_types.base import Task


@dataclass(frozen=True)
class LabelTask(Task):
    """A task whose predictions are labels, int (n,)."""

    head: ClassificationHead

    @property
    def labels(self) -> tuple[str, ...]:
        return self.head.labels

    def right(self, examples: Sequence[Example], predictions: Sequence[int]) -> np.ndarray:
        """float (n,): 1 if the predicted label is correct, else 0."""
        return np.array([float(p == e.target) for e, p in zip(examples, predictions, strict=True)])
