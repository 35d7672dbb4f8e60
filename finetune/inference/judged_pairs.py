"""The predictions of two runs for the same examples: which of them is right, and the choice of those to show."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.annotations.example import Example
from finetune.config import EvaluateConfig
from finetune.evaluation.bootstrap import clusters_of
from finetune.evaluation.paired_test import PairedTest, paired_test
from finetune.inference.argument_errors import naming_flag
from finetune.inference.judged_examples import RIGHT_ABOVE, JudgedExample, judge, load_examples, spread
from finetune.inference.model_loader import ModelLoader, OpenedTask
from finetune.run_dirs.finetune_run_dir import read_tasks
from finetune.task_types.base import Task
from finetune.tasks import add_task_files_of, choose_tasks
from shards.common.errors import UserError

COMPARE = "--compare"  # the flag that names run B, for messages; --run names run A
ONLY_A, ONLY_B, BOTH_WRONG, BOTH_RIGHT = "only A right", "only B right", "both wrong", "both right"
OUTCOMES = (ONLY_A, ONLY_B, BOTH_WRONG, BOTH_RIGHT)


@dataclass(frozen=True)
class JudgedPair:
    """The predictions of run A and run B for an example."""

    first: JudgedExample
    second: JudgedExample

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
        first, second = self.first.value > RIGHT_ABOVE, self.second.value > RIGHT_ABOVE
        if first == second:
            return BOTH_RIGHT if first else BOTH_WRONG
        return ONLY_A if first else ONLY_B

    @property
    def confidence(self) -> float:
        """The highest confidence of its wrong predictions; of both if none is wrong."""
        both = (self.first, self.second)
        wrong = [one for one in both if one.value <= RIGHT_ABOVE]
        return max(one.prediction.confidence[0] for one in wrong or both)


class TwoRuns:
    """Two runs that predict the same examples. Each reads its own data folder, so that their detectors may differ.

    first, second: flags of run A and of run B.
    """

    def __init__(self, first: EvaluateConfig, second: EvaluateConfig):
        self.first = ModelLoader(first)
        with naming_flag(COMPARE):
            self.second = ModelLoader(second)

    def judge(self, task: Task, split: str, count: int, batch: int) -> tuple[list[JudgedPair], OpenedTask, OpenedTask]:
        """The predictions of both runs for the first `count` examples of a split, and the task as each run opened it.

        batch: examples per batch.

        Raises:
            UserError: a run cannot predict the task, or the examples in their data folders differ.
        """
        first = load_examples(self.first, task, split, count)
        with naming_flag(COMPARE):
            second = load_examples(self.second, task, split, count)
        folders = " and ".join(str(task.folder(loader.config.data)) for loader in (self.first, self.second))
        check_same_examples(first.collator.examples, second.collator.examples, f"{folders}, {split}")
        judged = [judge(opened.task_pass, opened.collator, batch) for opened in (first, second)]
        return [JudgedPair(*both) for both in zip(*judged, strict=True)], first, second


def tasks_of_both(first: str, second: str, names: str | None) -> list[Task]:
    """The tasks of `names`, the value of --task; if it is None, those that two runs share."""
    with naming_flag(COMPARE):
        if names is None:
            known = {task.name for task in read_tasks(second)}
        add_task_files_of(second)
    add_task_files_of(first)
    if names is not None:
        return choose_tasks(names, "--task")
    if not (shared := [task for task in read_tasks(first) if task.name in known]):
        raise UserError(f"{COMPARE} {second}: was trained on none of the tasks of {first}; name some by --task")
    return shared


def check_same_examples(first: Sequence[Example], second: Sequence[Example], where: str) -> None:
    """Raises UserError if two runs predict different examples. where: the two data folders, for the message."""
    for number, (one, other) in enumerate(zip(first, second, strict=False), 1):
        if _question(one) != _question(other):
            raise UserError(f"{where}: example {number} is not the same in both; compare on one data folder by --data")
    if len(first) != len(second):
        raise UserError(f"{where}: {len(first)} and {len(second)} examples; compare on one data folder by --data")


def _question(example: Example) -> tuple:
    return example.id, example.text, example.images, example.target, example.candidates


def count_outcomes(pairs: Sequence[JudgedPair]) -> dict[str, int]:
    """Number of pairs of every outcome, in the order of OUTCOMES."""
    counts = Counter(pair.outcome for pair in pairs)
    return {outcome: counts[outcome] for outcome in OUTCOMES}


def compare(task: Task, pairs: Sequence[JudgedPair]) -> PairedTest:
    """The paired test of the task's main metric; examples that share an image are one cluster."""
    first, second = (np.array([getattr(pair, run).value for pair in pairs]) for run in ("first", "second"))
    clusters = clusters_of(pair.first.example.images for pair in pairs)
    return paired_test(first, second, clusters, seed=task.token)


def choose_pairs(pairs: Sequence[JudgedPair], count: int) -> list[JudgedPair]:
    """At most `count` pairs of every outcome, in descending order of confidence.

    Of pairs with a wrong prediction these are the most confident ones; those that both runs have right are spread over
    all confidences.
    """
    ordered = sorted(pairs, key=lambda pair: (-pair.confidence, pair.first.number))
    chosen = []
    for outcome in OUTCOMES:
        of = [pair for pair in ordered if pair.outcome == outcome]
        chosen += spread(of, count) if outcome == BOTH_RIGHT else of[:count]
    return chosen
