"""Base class of tasks that choose one of the candidate boxes of an example: Visual7W and GuessWhat."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.annotations.example import Example
from finetune.task_types.base import AnnotatedImage, GivenBoxes, Task


@dataclass(frozen=True)
class PointingTask(GivenBoxes, Task):
    """A task whose predictions are numbers of candidates, int (n,)."""

    def given_boxes(self, folder: Path) -> dict[str, AnnotatedImage]:
        """Image -> the candidates of all splits. The facts of an example may contain the `size` of its image."""
        found: dict[str, AnnotatedImage] = {}
        for example in (example for split in self.box_splits() for example in self.read(folder, split)):
            of_image = found.setdefault(example.images[0], AnnotatedImage({}, example.facts.get("size")))
            of_image.boxes.update(zip(example.candidate_ids, example.candidates, strict=True))
        return found

    def box_splits(self) -> tuple[str, ...]:
        """Splits that together contain all examples."""
        return self.splits

    def scores(self, examples: Sequence[Example], predictions: Sequence[int]) -> dict[str, np.ndarray]:
        return {"accuracy": np.array([float(p == e.target) for e, p in zip(examples, predictions, strict=True)])}

    def submission(self, examples: Sequence[Example], predictions: Sequence[int]) -> str:
        """A JSON list with the ids of the chosen boxes; there is no official server."""
        pairs = zip(examples, predictions, strict=True)
        return json.dumps([{"id": example.id, "box_id": example.candidate_ids[chosen]} for example, chosen in pairs])
