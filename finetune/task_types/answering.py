"""Base class of vocabulary-based VQA tasks: VQA, Visual Genome QA, GQA and DAQUAR."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from finetune.annotations.answers import AnswerVocabulary, build_vocabulary, normalise, read_vocabulary
from finetune.annotations.official_files import find_file, plain_or_packed
from finetune.annotations.reference_annotations import answer_file
from finetune.heads.answer_head import AnswerHead
from finetune.task_types.base import Task


@dataclass(frozen=True)
class AnsweringTask(Task):
    """A task whose predictions are answers, as text, from a vocabulary.

    at_least: minimum number of training questions with an answer for it to enter the vocabulary; annotated: official
    file of the training answers; answers_of: task whose vocabulary is shared if its annotations are in the data folder.
    """

    head: AnswerHead
    at_least: int = 1
    annotated: str = ""
    answers_of: str = ""

    @abstractmethod
    def right_answers(self, folder: Path) -> list[str]:
        """The ground-truth answer of every training question, from which the vocabulary is built."""

    def has_answers(self, folder: Path) -> bool:
        """Whether a folder contains the files that `vocabulary` reads."""
        return plain_or_packed(find_file(folder, self.annotated)).exists() or answer_file(folder) is not None

    def vocabulary(
        self, folder: str | Path, counted: Callable[[], Mapping[str, int]] | None = None
    ) -> AnswerVocabulary:
        """The vocabulary of the official file, or of the reference implementation's answer file if only that exists.

        counted: returns the right answers with their numbers, if they need not be read.
        """
        if not find_file(Path(folder), self.annotated).exists() and (kept := answer_file(Path(folder))):
            return read_vocabulary(kept)
        answers = counted() if counted else self.right_answers(Path(folder))
        return build_vocabulary(answers, self.at_least, self.answer_form)

    def answer_form(self, answer: str) -> str:
        """The form of an answer in the vocabulary."""
        return normalise(answer)


class HasId(Protocol):
    """An example, or a partially read one."""

    @property
    def id(self) -> int | str: ...


Some = TypeVar("Some", bound=HasId)


def held_out_by_id(examples: Sequence[Some], count: int, share: float) -> tuple[list[Some], list[Some]]:
    """Splits examples by id into (training, held out), each in ascending order of id.

    The held-out part is the last `count` examples, but at most the fraction `share` of all and at least one.
    """
    ordered = sorted(examples, key=lambda example: example.id)
    count = min(count, max(1, int(len(ordered) * share)))
    return ordered[: len(ordered) - count], ordered[len(ordered) - count :]
