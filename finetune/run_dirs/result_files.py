"""Schemas of the result files of runs, which are validated when they are read."""

import msgspec

VALUES = "values.npz"  # per-example scores of the last validation, by task
Interval = tuple[float, float]


class Scores(msgspec.Struct):
    """A task's validation metrics in result.json."""

    score: float
    examples: int
    interval: Interval | None = None
    trained_on: int | None = None
    steps: int = 0
    images: int | None = None


class SingleResult(msgspec.Struct):
    """result.json of a single-task run."""

    task: str
    kind: str
    validation: Scores
    best_step: int
    seconds: float
    examples: int


class MultiResult(msgspec.Struct):
    """result.json of a multi-task run."""

    tasks: dict[str, Scores]
    iterations: int
    mt_score: float
    seconds: float
    mt_interval: Interval | None = None


class EvaluationScores(msgspec.Struct):
    """A file of scores that finetune.evaluate has written."""

    task: str
    split: str
    score: float
    interval: Interval | None = None
    images: int | None = None
    splits: dict[str, float] | None = None
