"""Choosing one of the boxes that come with an example: what Visual7W and GuessWhat share."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.boxes import grounding_target
from finetune.task import Box, Example, Task


@dataclass(frozen=True)
class PointingTask(Task):
    """Predictions: the number of the chosen candidate, int (n,)."""

    def given_boxes(self, folder: Path) -> dict[str, dict[str, Box]]:
        """Image -> {box id: box} of the candidates of all splits."""
        found: dict[str, dict[str, Box]] = {}
        for example in (example for split in self.splits for example in self.read(folder, split)):
            of_image = found.setdefault(example.images[0], {})
            of_image.update(zip(example.candidate_ids, example.candidates, strict=True))
        return found

    def scores(self, examples: Sequence[Example], predictions: Sequence[int]) -> dict[str, np.ndarray]:
        return {"accuracy": np.array([float(p == e.target) for e, p in zip(examples, predictions, strict=True)])}

    def submission(self, examples: Sequence[Example], predictions: Sequence[int]) -> str:
        """No server takes one: a JSON list of the chosen boxes' ids."""
        pairs = zip(examples, predictions, strict=True)
        return json.dumps([{"id": example.id, "box_id": example.candidate_ids[chosen]} for example, chosen in pairs])


def candidate_target(example: Example) -> np.ndarray:
    """float32 (candidates,): each one's IoU with the right one where that is 0.5 or more, else 0."""
    return grounding_target(np.array(example.candidates), example.candidates[example.target])
