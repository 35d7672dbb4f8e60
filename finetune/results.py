"""The fields of the files that runs leave, as types that are checked when they are read."""

import msgspec

Interval = tuple[float, float]


class Scores(msgspec.Struct):
    """A task's metrics of a run's validation."""

    score: float
    examples: int
    interval: Interval | None = None
    trained_on: int | None = None
    steps: int = 0
    images: int | None = None


class SingleResult(msgspec.Struct):
    """result.json of a run of one task."""

    task: str
    kind: str
    validation: Scores
    best_step: int
    seconds: float
    examples: int


class MultiResult(msgspec.Struct):
    """result.json of a run of many tasks."""

    tasks: dict[str, Scores]
    iterations: int
    mt_score: float
    seconds: float
    mt_interval: Interval | None = None


class KeptScores(msgspec.Struct):
    """The scores that an evaluation has stored."""

    task: str
    split: str
    score: float
    interval: Interval | None = None
    images: int | None = None
    splits: dict[str, float] | None = None
