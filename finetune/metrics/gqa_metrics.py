"""GQA's official metrics other than accuracy, by the rules of its eval.py (gqadataset.org).

Scores reproduce the official ones exactly: predictions and answers are compared as strings, without normalisation.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from finetune.annotations.example import Example
from finetune.annotations.official_files import RecordFile, find_file
from finetune.task_types.base import FurtherScores
from shards.common.image_id import image_id

WITH_FILES = ("val", "testdev")  # splits with {split}_all_questions.json and {split}_choices.json
QUERYING = ("exist", "query: name", "choose name")  # operations that do not count as reasoning steps
COMMON = ("color", "material", "shape")  # valid answers to questions about what two objects have in common


class Operation(msgspec.Struct):
    """A step of a question's functional program."""

    operation: str
    argument: str = ""


class Choices(msgspec.Struct):
    """A record of a choices file: answers of the question's type (valid), and realistic answers (plausible)."""

    valid: list[str]
    plausible: list[str]


class AnyQuestion(msgspec.Struct):
    """A record of an all-questions file. entailed: ids of questions whose answers follow from this one's."""

    question: str
    image: str | int = msgspec.field(name="imageId")
    answer: str
    entailed: list[str] = []


def step_count(program: Sequence[Operation]) -> int:
    """Number of reasoning steps of a functional program; the operations in QUERYING do not count."""
    return sum(not any(name in f"{step.operation}: {step.argument}" for name in QUERYING) for step in program)


def is_right(example: Example, prediction: str) -> bool:
    return prediction in example.target


def distribution_score(examples: Sequence[Example], predictions: Sequence[str]) -> float | None:
    """Chi-square statistic of predicted against ground-truth answers within each global group of questions.

    The mean over groups, weighted by their number of questions, divided by 100; lower is better. Predictions that are
    not a ground-truth answer in their group are ignored. None if no question belongs to a group.
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
    """Validity and plausibility: fractions of the predictions that are among the answers of the choices file."""
    choices, valid, plausible = RecordFile(path, Choices), 0, 0
    for example, prediction in zip(examples, predictions, strict=True):
        of = choices[example.id]
        common = "Common" in (example.facts.get("detailed") or "")
        valid += prediction in (COMMON if common else of.valid)
        plausible += prediction in (COMMON if common else of.plausible)
    return {"validity": valid / len(examples), "plausibility": plausible / len(examples)}


@dataclass(frozen=True)
class OfficialScores(FurtherScores):
    """Consistency, which needs predictions of entailed questions, and the other metrics.

    examples: entailed questions that are not in the split; known: the other metrics; right: id -> whether a question of
    the split was answered correctly; entailed: for each of these that was answered correctly and entails other
    questions, their ids.
    """

    examples: Sequence[Example]
    absent: str
    known: dict[str, float]
    right: dict[str, bool]
    entailed: list[list[str]]

    def scores(self, predictions: Mapping[str, str]) -> dict[str, float]:
        """Adds consistency: the accuracy on the entailed questions of each correctly answered question, averaged over
        these questions. Entailed questions without a prediction (--missing skip) are ignored."""
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
    """The metrics of a split whose files exist, with a message on the files that the others need."""
    known: dict[str, float] = {}
    further: list[Example] = []
    entailed: list[list[str]] = []
    absent = f"consistency, validity and plausibility: only available for the splits {' and '.join(WITH_FILES)}"
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
    """(ids that each correctly answered question entails, the entailed questions that are not in the split).

    Args:
        path: an all-questions file.
        right: id -> whether a question of the split was answered correctly.
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
                further[id] = Example(id, found.question, (image_id(str(found.image)),), {found.answer: 1.0})
    return entailed, list(further.values())
