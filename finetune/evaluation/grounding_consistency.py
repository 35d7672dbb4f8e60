"""Grounding consistency (MT-VGC): agreement of answers to questions with the grounding of related expressions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune.evaluation.bootstrap import bootstrap_ratios, interval_of
from shards.common.errors import UserError

MIN_ACCURACY = 0.5  # minimum VQA accuracy of a question that counts as answered; the paper does not specify one
_ROUNDING = 1e-9  # tolerance: VQA accuracies are means of ten sums of thirds


@dataclass(frozen=True)
class ImageAgreement:
    """The questions and referring expressions of one image.

    shared: int (questions, expressions), the paper's d: number of nouns and adjectives in common; answered: float
    (questions,), VQA accuracy; found: float (expressions,), 1 if the IoU is above 0.5, else 0.
    """

    shared: np.ndarray
    answered: np.ndarray
    found: np.ndarray

    @property
    def sums(self) -> tuple[float, float, float, float]:
        """Sums over all pairs of d * answered * found, d, d * answered, and d * found."""
        return (
            float(self.answered @ self.shared @ self.found),
            float(self.shared.sum()),
            float(self.answered @ self.shared.sum(1)),
            float(self.shared.sum(0) @ self.found),
        )

    def thresholded(self, threshold: float) -> "ImageAgreement":
        """A copy in which `answered` is the paper's y(q): 1 if the VQA accuracy is at least the threshold, else 0."""
        return replace(self, answered=(self.answered >= threshold - _ROUNDING).astype(float))


@dataclass(frozen=True)
class Consistency:
    """MT-VGC with its 95% interval over images, and values to compare it with.

    images, pairs: numbers of images, and of pairs of a question and an expression that share a word; answered, found:
    mean y(q) (VQA accuracy in the fractional form) of all questions, and mean accuracy of all expressions; independent:
    the score if both were statistically independent, the product of their means weighted by d.
    """

    score: float
    interval: tuple[float, float]
    images: int
    pairs: int
    answered: float
    found: float
    independent: float


def shared_words(questions: Sequence[frozenset[str]], expressions: Sequence[frozenset[str]]) -> np.ndarray:
    """int64 (questions, expressions): d, the number of words that each pair shares."""
    return np.array([[len(q & r) for r in expressions] for q in questions], np.int64).reshape(-1, len(expressions))


def both_forms(images: Sequence[ImageAgreement], threshold: float = MIN_ACCURACY) -> dict[str, Consistency]:
    """MT-VGC of the same images with both forms of y(q): the thresholded one, as in the paper, and the fractional one.

    Args:
        images: with VQA accuracies in `answered`.
        threshold: minimum VQA accuracy of a question that counts as answered, above 0.
    """
    return {
        "threshold": consistency([image.thresholded(threshold) for image in images]),
        "fractional": consistency(images),
    }


def consistency(images: Sequence[ImageAgreement]) -> Consistency:
    """The paper's equation 5, with `answered` as y(q).

    Raises:
        UserError: there are no images, or no question and expression share a noun or an adjective.
    """
    if not images:
        raise UserError("no image has both questions with public answers and referring expressions")
    agree, shared, answered, found = np.array([image.sums for image in images]).T
    if not shared.sum():
        pairs = sum(image.shared.size for image in images)
        raise UserError(f"none of the {pairs} pairs of a question and an expression share a noun or an adjective")
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
