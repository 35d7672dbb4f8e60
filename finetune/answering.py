"""Questions whose answer is one of a vocabulary: what VQA, Visual Genome QA and GQA share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.answers import AnswerVocabulary, build_vocabulary
from finetune.task import Example, Task


@dataclass(frozen=True)
class AnsweringTask(Task):
    """Predictions are answers as text.

    at_least: how many training questions must have an answer for it to be in the vocabulary.
    """

    at_least: int = 1

    @abstractmethod
    def right_answers(self, folder: Path) -> list[str]:
        """The one answer of every training question that the vocabulary is built from."""

    def vocabulary(self, folder) -> AnswerVocabulary:
        return build_vocabulary(self.right_answers(Path(folder)), self.at_least)


def held_out_by_id(examples: Sequence[Example], count: int, share: float) -> tuple[list[Example], list[Example]]:
    """(the others, the last `count` by id), each in ascending order; of few examples a share, and one at the least."""
    ordered = sorted(examples, key=lambda example: example.id)
    count = min(count, max(1, int(len(ordered) * share)))
    return ordered[: len(ordered) - count], ordered[len(ordered) - count :]
