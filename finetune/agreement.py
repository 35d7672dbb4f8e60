"""Grounding consistency (MT-VGC): whether a model that answers a question about something also finds it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.intervals import bootstrap_means, interval_of
from shards.errors import UserError


@dataclass(frozen=True)
class ImageAgreement:
    """What is asked and pointed at in one image.

    shared: int (questions, expressions), d of the paper: the nouns and adjectives that both have; answered: float
    (questions,), VQA accuracy; found: float (expressions,), 1 where the IoU is above 0.5.
    """

    shared: np.ndarray
    answered: np.ndarray
    found: np.ndarray

    @property
    def sums(self) -> tuple[float, float, float, float]:
        """Of d over all pairs: by answered and found, alone, by answered, by found."""
        return (
            float(self.answered @ self.shared @ self.found),
            float(self.shared.sum()),
            float(self.answered @ self.shared.sum(1)),
            float(self.shared.sum(0) @ self.found),
        )


@dataclass(frozen=True)
class Consistency:
    """MT-VGC with its 95% interval over images, and what stands beside it.

    pairs: of a question and an expression that share a word; answered, found: accuracies over all questions and all
    expressions of these images; independent: the score if answering and finding had nothing to do with each other, the
    product of their accuracies weighted by d.
    """

    score: float
    interval: tuple[float, float]
    images: int
    pairs: int
    answered: float
    found: float
    independent: float


def shared_words(questions: Sequence[frozenset[str]], expressions: Sequence[frozenset[str]]) -> np.ndarray:
    """int (questions, expressions): d, the words that each two share."""
    return np.array([[len(q & r) for r in expressions] for q in questions], np.int64).reshape(-1, len(expressions))


def consistency(images: Sequence[ImageAgreement]) -> Consistency:
    """The paper's equation 5 over images; a UserError where there is nothing to go by."""
    if not images:
        raise UserError("no image has both questions with public answers and referring expressions")
    agree, shared, answered, found = np.array([image.sums for image in images]).T
    if not shared.sum():
        pairs = sum(image.shared.size for image in images)
        raise UserError(f"none of the {pairs} pairs of a question and an expression shares a noun or an adjective")
    drawn = bootstrap_means(shared)
    with np.errstate(invalid="ignore"):
        draws = bootstrap_means(agree) / drawn  # the same images are drawn for both
    return Consistency(
        score=float(agree.sum() / shared.sum()),
        interval=interval_of(draws[drawn > 0]),
        images=len(images),
        pairs=int(sum((image.shared > 0).sum() for image in images)),
        answered=float(np.concatenate([image.answered for image in images]).mean()),
        found=float(np.concatenate([image.found for image in images]).mean()),
        independent=float(answered.sum() * found.sum() / shared.sum() ** 2),
    )
