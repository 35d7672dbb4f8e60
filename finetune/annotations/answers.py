"""Answers as text: VQA's official normalisation and accuracy, answer vocabularies, soft scores for training.

The rules reproduce the official evaluation (github.com/GT-Vision-Lab/VQA) exactly, its peculiarities included.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from finetune.annotations.official_files import read_annotations, read_pickle
from shards.common.errors import UserError
from shards.common.files import write_json
from shards.common.untrusted_input import shown

# The reference implementation's answer files, relative to the folder of a data set.
ORDER = ("cache/trainval_label2ans.pkl", "cache/trainval_ans2label.pkl")


def _words(text: str) -> list[str]:
    return text.split()


ARTICLES = {"a", "an", "the"}
NUMBERS = {word: str(n) for n, word in enumerate(_words("zero one two three four five six seven eight nine ten"))}
NUMBERS["none"] = "0"
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # maximum replacements: the official code passes a flag (32) as the count of re.sub
_COMMA = re.compile(r"\d,\d")

# Contractions that are often typed without their apostrophe. Of two apostrophes, either may be missing.
_ONE = _words("""
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's
    isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've
    shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're
    there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
    you've
""")
_TWO = _words("""
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
    something'd've there'd've they'd've we'd've who'd've wouldn't've you'd've
""")
CONTRACTIONS = {word.replace("'", ""): word for word in _ONE}
CONTRACTIONS |= {word.replace("'", "", 1): word for word in _TWO}
CONTRACTIONS |= {"'".join(word.rsplit("'", 1)[:1]) + word.rsplit("'", 1)[1]: word for word in _TWO}
# Irregular entries. Words are lower-cased before the lookup, so the official list's entries with I never match.
CONTRACTIONS |= {
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "somebody'd": "somebodyd",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}


@functools.lru_cache(maxsize=1 << 18)  # millions of answers have few distinct values
def normalise(text: str) -> str:
    """An answer in the official normal form: no punctuation, digits for number words, no articles, lower case."""
    return _without_articles(_without_punctuation(text))


def _without_punctuation(text: str) -> str:
    out, in_number = text, _COMMA.search(text) is not None
    for mark in PUNCTUATION:
        next_to_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if next_to_space or in_number else " ")
    return _PERIOD.sub("", out, count=_PERIODS)


def _without_articles(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy: the mean, over all subsets of annotators with one removed, of min(matches / 3, 1).

    Where the answers of all annotators are identical strings, nothing is normalised, as in the official evaluation.
    """
    prediction, answers = _one_line(prediction), [_one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalise(prediction), [normalise(answer) for answer in answers]
    matches = answers.count(prediction)
    # Removing an annotator who matches the prediction leaves one match less.
    total = matches * min(1, (matches - 1) / 3) + (len(answers) - matches) * min(1, matches / 3)
    return total / len(answers)


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Soft training targets of normalised answers: 0.3 per annotator who gave the answer, at most 1."""
    return {answer: min(1.0, 0.3 * count) for answer, count in Counter(map(normalise, answers)).items()}


class AnswerVocabulary:
    """A list of answers; the position of an answer is its label."""

    def __init__(self, answers: Sequence[str]):
        self.answers = list(answers)
        self.labels = {answer: label for label, answer in enumerate(self.answers)}
        if len(self.labels) != len(self.answers):
            twice = next(answer for answer, count in Counter(self.answers).items() if count > 1)
            raise UserError(f"duplicate answer {twice!r} in the vocabulary")

    def __len__(self) -> int:
        return len(self.answers)

    def target(self, scores: dict[str, float]) -> np.ndarray:
        """float32 (answers,): the scores by label; answers outside the vocabulary are ignored."""
        target = np.zeros(len(self), np.float32)
        for answer, score in scores.items():
            if answer in self.labels:
                target[self.labels[answer]] = score
        return target

    def save(self, path) -> None:
        write_json(path, self.answers)


class NoAnswers(UserError):
    """No answer is frequent enough for the vocabulary."""


def build_vocabulary(
    answers: Iterable[str] | Mapping[str, int], at_least: int, form: Callable[[str], str] = normalise
) -> AnswerVocabulary:
    """The answers that are the ground truth of at least `at_least` questions, the most frequent first.

    Args:
        answers: the ground-truth answer of every question, or answer -> number of questions.
        at_least: minimum number of questions.
        form: normalisation that is applied to every answer before counting.

    Raises:
        NoAnswers: no answer is frequent enough.
    """
    counts: Counter[str] = Counter()
    for answer, count in Counter(answers).items():
        counts[form(answer)] += count
    kept = sorted((answer for answer, count in counts.items() if count >= at_least), key=lambda a: (-counts[a], a))
    if not kept:
        most = f"; the most frequent one has {max(counts.values())}" if counts else ""
        raise NoAnswers(f"no answer is the ground truth of {at_least} or more questions{most}")
    return AnswerVocabulary(kept)


def _are_labels(values) -> bool:
    """Whether values are the integers from 0 to n - 1, each once, as numbers or as text."""
    plain = all(isinstance(value, int | str) and not isinstance(value, bool) for value in values)
    return plain and {str(value)[:20] for value in values} == set(map(str, range(len(values))))


def read_vocabulary(path) -> AnswerVocabulary:
    """Reads a vocabulary from a file.

    path: a JSON list of answers in label order, or of {"ans": text} as in LXMERT; or a pickle of such a list, or of a
    dict from answers to labels, as in the reference implementation.
    """
    value = read_pickle(path) if str(path).endswith(".pkl") else read_annotations(path)
    if isinstance(value, dict) and _are_labels(value.values()):
        value = sorted(value, key=lambda answer: int(value[answer]))
    if isinstance(value, list):
        value = [item.get("ans") if isinstance(item, dict) else item for item in value]
    if not isinstance(value, list) or not value or not all(isinstance(answer, str) for answer in value):
        raise UserError(f"{path}: should be a JSON or pickled list of answers and is {shown(value)}")
    return AnswerVocabulary(value)
