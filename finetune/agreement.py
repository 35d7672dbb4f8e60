"""Grounding consistency (MT-VGC): whether a model that answers a question about something also finds it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune.intervals import bootstrap_ratios, interval_of
from shards.errors import UserError

THRESHOLD = 0.5  # VQA accuracy from which a question counts as answered; the paper gives none
_ROUNDING = 1e-9  # VQA accuracies are means of ten sums of thirds


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

    def thresholded(self, threshold: float) -> "ImageAgreement":
        """The same with y(q) of the paper: 1 where a question's accuracy is at least the threshold, else 0."""
        return replace(self, answered=(self.answered >= threshold - _ROUNDING).astype(float))


@dataclass(frozen=True)
class Consistency:
    """MT-VGC with its 95% interval over images, and the values it is compared with.

    pairs: of a question and an expression that share a word; answered, found: means of y(q) (VQA accuracy in the
    fractional form) over all questions and of accuracy over all expressions of these images; independent: the score if
    answering and finding had nothing to do with each other, the product of their means weighted by d.
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


def both_forms(images: Sequence[ImageAgreement], threshold: float = THRESHOLD) -> dict[str, Consistency]:
    """MT-VGC of the same images with both forms of y(q): the thresholded one, as in the paper, and the fractional one.

    Args:
        images: with VQA accuracies in `answered`.
        threshold: the least VQA accuracy of a question that counts as answered, above 0.
    """
    return {
        "threshold": consistency([image.thresholded(threshold) for image in images]),
        "fractional": consistency(images),
    }


def consistency(images: Sequence[ImageAgreement]) -> Consistency:
    """The paper's equation 5 over images, with their `answered` as y(q).

    Raises:
        UserError: there are no images, or no question and expression share a noun or an adjective.
    """
    if not images:
        raise UserError("no image has both questions with public answers and referring expressions")
    agree, shared, answered, found = np.array([image.sums for image in images]).T
    if not shared.sum():
        pairs = sum(image.shared.size for image in images)
        raise UserError(f"none of the {pairs} pairs of a question and an expression shares a noun or an adjective")
    draws = bootstrap_ratios(agree, shared)
    return Consistency(
        score=float(agree.sum() / shared.sum()),
        interval=interval_of(draws[~np.isnan(draws)]),
        images=len(images),
        pairs=int(sum((image.shared > 0).sum() for image in images)),
        answered=float(np.concatenate([image.answered for image in images]).mean()),
        found=float(np.concatenate([image.found for image in images]).mean()),
        independent=float(answered.sum() * found.sum() / shared.sum() ** 2),
    )
