"""GQA's official metrics beside accuracy, by the rules of its eval.py (gqadataset.org).

scores here are to be the scores there, oddities included: prediction and answer are compared to the letter.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from finetune.official import RecordFile, find_file
from finetune.task import Example, FurtherScores

WITH_FILES = ("val", "testdev")  # splits with {split}_all_questions.json and {split}_choices.json
QUERYING = ("exist", "query: name", "choose name")  # operations that are no reasoning steps
COMMON = ("color", "material", "shape")  # what may be answered where two things are asked what they have in common


class Operation(msgspec.Struct):
    """A step of a question's functional program."""

    operation: str
    argument: str = ""


class Choices(msgspec.Struct):
    """A record of a choices file: answers that could be one to the question, and those that make sense in the world."""

    valid: list[str]
    plausible: list[str]


class AnyQuestion(msgspec.Struct):
    """A record of an all-questions file. entailed: ids of questions whose answers follow from this one's."""

    question: str
    image: str | int = msgspec.field(name="imageId")
    answer: str
    entailed: list[str] = []


def step_count(program: Sequence[Operation]) -> int:
    """Reasoning steps of a functional program; the operations that only query do not count."""
    return sum(not any(name in f"{step.operation}: {step.argument}" for name in QUERYING) for step in program)


def is_right(example: Example, prediction: str) -> bool:
    return prediction in example.target


def distribution_score(examples: Sequence[Example], predictions: Sequence[str]) -> float | None:
    """Chi-square statistic of the predicted answers against the right ones within each global group of questions.

    The mean over groups, weighted by their questions, divided by 100; lower is better. Predictions that are the right
    answer of no question of the group do not count. None where no question belongs to a group.
    """
    right: dict[str, Counter[str]] = {}
    predicted: dict[str, Counter[str]] = {}
    for example, prediction in zip(examples, predictions, strict=True):
        if (group := example.facts.get("group")) is not None:
            right.setdefault(group, Counter()).update(example.target)
            predicted.setdefault(group, Counter())[prediction] += 1
    if not right:
        return None
    weighted = 0.0
    for group, counts in right.items():
        statistic = sum((predicted[group][answer] - count) ** 2 / count for answer, count in counts.items())
        weighted += statistic * counts.total()
    return weighted / sum(counts.total() for counts in right.values()) / 100


def choice_scores(path: Path, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
    """Validity and plausibility: shares of the predictions that are among the answers of the choices file."""
    choices, valid, plausible = RecordFile(path, Choices), 0, 0
    for example, prediction in zip(examples, predictions, strict=True):
        of = choices[example.id]
        common = "Common" in (example.facts.get("detailed") or "")
        valid += prediction in (COMMON if common else of.valid)
        plausible += prediction in (COMMON if common else of.plausible)
    return {"validity": valid / len(examples), "plausibility": plausible / len(examples)}


@dataclass(frozen=True)
class OfficialScores(FurtherScores):
    """Consistency, and what is known before it. examples: the entailed questions that are not of the split itself.

    known: the other metrics; right: id -> whether the prediction for a question of the split is right; entailed: of
    each question of the split that was answered correctly and entails others, the ids of these.
    """

    examples: Sequence[Example]
    absent: str
    known: dict[str, float]
    right: dict[str, bool]
    entailed: list[list[str]]

    def scores(self, predictions: Mapping[str, str]) -> dict[str, float]:
        """Consistency is the accuracy on the entailed questions of each question that was answered correctly, averaged
        over these; entailed questions without a prediction (--missing skip) do not count."""
        answered = (example for example in self.examples if example.id in predictions)
        right = self.right | {example.id: is_right(example, predictions[example.id]) for example in answered}
        shares = []
        for ids in self.entailed:
            values = [right[id] for id in ids if id in right]
            shares += [sum(values) / len(values)] if values else []
        return ({"consistency": sum(shares) / len(shares)} if shares else {}) | self.known

    def describe(self, scores: dict[str, float]) -> str:
        parts = [f"{name} {value:.2%}" for name, value in scores.items() if name != "distribution"]
        if "distribution" in scores:
            parts.append(f"distribution {scores['distribution']:.2f} (lower is better)")
        return ", ".join(parts)


def official_scores(
    folder: Path, split: str, examples: Sequence[Example], predictions: Sequence[str]
) -> OfficialScores:
    """The metrics of a split for which its files are there, and which files would give the others."""
    known: dict[str, float] = {}
    further: list[Example] = []
    entailed: list[list[str]] = []
    absent = f"consistency, validity and plausibility: of the splits {' and '.join(WITH_FILES)} alone"
    pairs = zip(examples, predictions, strict=True)
    right = {example.id: is_right(example, prediction) for example, prediction in pairs}
    if split in WITH_FILES:
        lacking = []
        questions, choices = (find_file(folder, f"{split}_{kind}.json") for kind in ("all_questions", "choices"))
        if questions.exists():
            entailed, further = entailed_questions(questions, right)
        else:
            lacking.append(f"consistency needs {questions.name}")
        if choices.exists():
            known |= choice_scores(choices, examples, predictions)
        else:
            lacking.append(f"validity and plausibility need {choices.name}")
        absent = f"not computed: {'; '.join(lacking)} in {folder}" if lacking else ""
    if (distribution := distribution_score(examples, predictions)) is not None:
        known["distribution"] = distribution
    return OfficialScores(further, absent, known, right, entailed)


def entailed_questions(path: Path, right: dict[str, bool]) -> tuple[list[list[str]], list[Example]]:
    """(ids that each correctly answered question entails, the entailed questions that are not among those answered).

    Args:
        path: an all-questions file.
        right: id -> whether the prediction for a question is right.
    """
    records, further, entailed = RecordFile(path, AnyQuestion), {}, []
    for question, is_correct in right.items():
        ids = [id for id in records[question].entailed if id != question] if is_correct else []
        if not ids:
            continue
        entailed.append(ids)
        for id in ids:
            if id not in right and id not in further:
                found = records[id]
                further[id] = Example(id, found.question, (str(found.image),), {found.answer: 1.0})
    return entailed, list(further.values())
