"""Questions whose answer is one of a vocabulary: what VQA, Visual Genome QA and GQA share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from finetune.answers import AnswerVocabulary, build_vocabulary, read_vocabulary
from finetune.official import find_file, plain_or_packed
from finetune.processed import answer_file
from finetune.task import Task


@dataclass(frozen=True)
class AnsweringTask(Task):
    """Predictions are answers as text.

    at_least: how many training questions must have an answer for it to be in the vocabulary; annotated: the official
    file that has the training answers; answers_of: the task whose vocabulary it shares, where that one's annotations
    are in the data folder too.
    """

    at_least: int = 1
    annotated: str = ""
    answers_of: str = ""

    @abstractmethod
    def right_answers(self, folder: Path) -> list[str]:
        """The one answer of every training question that the vocabulary is built from."""

    def has_answers(self, folder: Path) -> bool:
        """Whether a folder has what `vocabulary` reads."""
        return plain_or_packed(find_file(folder, self.annotated)).exists() or answer_file(folder) is not None

    def vocabulary(self, folder) -> AnswerVocabulary:
        """From the official file, or, where the published code's own forms stand in for it, the one these go by."""
        if not find_file(Path(folder), self.annotated).exists() and (kept := answer_file(Path(folder))):
            return read_vocabulary(kept)
        return build_vocabulary(self.right_answers(Path(folder)), self.at_least)


class HasId(Protocol):
    """An example, or as much of one as has been read."""

    @property
    def id(self) -> int | str: ...


Some = TypeVar("Some", bound=HasId)


def held_out_by_id(examples: Sequence[Some], count: int, share: float) -> tuple[list[Some], list[Some]]:
    """(the others, the last `count` by id), each in ascending order; of few examples a share, and one at the least."""
    ordered = sorted(examples, key=lambda example: example.id)
    count = min(count, max(1, int(len(ordered) * share)))
    return ordered[: len(ordered) - count], ordered[len(ordered) - count :]
