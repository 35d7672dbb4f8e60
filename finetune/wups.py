"""Scores of answers that are sets of words: set accuracy, and WUPS (Malinowski and Fritz, NeurIPS 2014).

The rules are those of the authors' calculate_wups.py, by which published scores of DAQUAR are computed.
"""

import functools
import math
from collections.abc import Callable, Sequence

from finetune.wordnet import Nouns

THRESHOLDS = (0.9, 0.0)
BELOW = 0.1  # what a similarity below the threshold is multiplied by

Measure = Callable[[str, str], float]  # how alike two words are, between 0 and 1


def words_of(answer: str) -> list[str]:
    """The words of an answer, which have commas between them."""
    return [word.strip() for word in answer.split(",")]


def set_accuracy(predicted: str, right: str) -> float:
    """1 where two answers are the same set of words, else 0."""
    return float(set(words_of(predicted)) == set(words_of(right)))


def fuzzy_score(predicted: Sequence[str], right: Sequence[str], measure: Measure) -> float:
    """How much two sets of words are the same: the lesser of both products over the words of one set, each with its
    greatest likeness to a word of the other."""
    of_predicted = math.prod(max(measure(word, other) for other in right) for word in predicted)
    of_right = math.prod(max(measure(word, other) for other in predicted) for word in right)
    return min(of_predicted, of_right)


def word_measure(nouns: Nouns, threshold: float) -> Measure:
    """Wu and Palmer's similarity of two words by their most similar senses, BELOW times that where it is below a
    threshold; 1 of a word with itself, 0 where one is no noun."""

    @functools.cache
    def measure(word: str, other: str) -> float:
        if word == other:
            return 1.0
        pairs = ((one, another) for one in nouns.senses(word) for another in nouns.senses(other))
        most = max((nouns.similarity(*pair) for pair in pairs), default=0.0)
        return most if most >= threshold else BELOW * most

    return measure


def wups(predicted: Sequence[str], right: Sequence[str], nouns: Nouns, threshold: float) -> float:
    """The mean score of answers."""
    measure = word_measure(nouns, threshold)
    pairs = zip(predicted, right, strict=True)
    return sum(fuzzy_score(words_of(said), words_of(answer), measure) for said, answer in pairs) / len(right)
