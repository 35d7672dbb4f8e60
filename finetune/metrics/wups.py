"""Scores of answers that are sets of words: set accuracy, and WUPS (Malinowski and Fritz, NeurIPS 2014).

The rules are those of the authors' calculate_wups.py, which computes the published scores on DAQUAR.
"""

import functools
import math
from collections.abc import Callable, Sequence

from finetune.metrics.wordnet import Nouns

THRESHOLDS = (0.9, 0.0)
BELOW = 0.1  # factor on similarities below the threshold

Measure = Callable[[str, str], float]  # similarity of two words, between 0 and 1


def words_of(answer: str) -> list[str]:
    """The words of a comma-separated answer."""
    return [word.strip() for word in answer.split(",")]


def set_accuracy(predicted: str, right: str) -> float:
    """1 if two answers are the same set of words, else 0."""
    return float(set(words_of(predicted)) == set(words_of(right)))


def fuzzy_score(predicted: Sequence[str], right: Sequence[str], measure: Measure) -> float:
    """Fuzzy set equality: the product over the words of one set of their maximum similarity to a word of the other
    set, in both directions; the smaller of both products."""
    of_predicted = math.prod(max(measure(word, other) for other in right) for word in predicted)
    of_right = math.prod(max(measure(word, other) for other in predicted) for word in right)
    return min(of_predicted, of_right)


def word_measure(nouns: Nouns, threshold: float) -> Measure:
    """The thresholded Wu-Palmer similarity of two words.

    It is that of their most similar senses, multiplied by BELOW if it is below the threshold; 1 for identical words and
    0 if one of them is not a noun.
    """

    @functools.cache
    def measure(word: str, other: str) -> float:
        if word == other:
            return 1.0
        pairs = ((one, another) for one in nouns.senses(word) for another in nouns.senses(other))
        most = max((nouns.similarity(*pair) for pair in pairs), default=0.0)
        return most if most >= threshold else BELOW * most

    return measure


def wups(predicted: Sequence[str], right: Sequence[str], nouns: Nouns, threshold: float) -> float:
    """WUPS: the mean fuzzy score of predicted and ground-truth answers."""
    measure = word_measure(nouns, threshold)
    pairs = zip(predicted, right, strict=True)
    return sum(fuzzy_score(words_of(guess), words_of(answer), measure) for guess, answer in pairs) / len(right)
