"""The head of tasks that choose among the candidate boxes of an example."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.annotations.answers import AnswerVocabulary
from finetune.annotations.boxes import grounding_target
from finetune.annotations.example import Box, Example
from finetune.heads.base import Scene
from finetune.heads.inputs import TaskInputs
from finetune.heads.pointing_head import PointingHead
from shards.storage.sample import Sample


@dataclass(frozen=True)
class CandidatesHead(PointingHead):
    """One of the candidate boxes (Visual7W, GuessWhat), which are the last rows of the image stream."""

    name: str = "candidates"

    has_candidates = True
    input_label, input_example = "Question or dialogue", "Which one is red?"

    def first_row(self, inputs: TaskInputs) -> int:
        return -inputs.candidates

    def targets(
        self, examples: Sequence[Example], samples: Sequence[Sample], rows: int, vocabulary: AnswerVocabulary | None
    ) -> Tensor:
        """float32 (B, rows), see PointingHead."""
        targets = np.zeros((len(examples), rows), np.float32)
        for target, example in zip(targets, examples, strict=True):
            target[: len(example.candidates)] = candidate_target(example)
        return torch.from_numpy(targets)

    def choices(self, scene: Scene, vocabulary: AnswerVocabulary | None) -> tuple[list[str], Sequence[Box]]:
        return [f"candidate {number}" for number in range(len(scene.candidates))], scene.candidates

    def expected(self, example: Example) -> tuple[str, Box]:
        return f"candidate {example.target}", example.candidates[example.target]


def candidate_target(example: Example) -> np.ndarray:
    """float32 (candidates,): the IoU of each candidate with the correct one where it is at least 0.5, else 0."""
    return grounding_target(np.array(example.candidates), example.candidates[example.target])
