"""The similarities and norms of the tasks' gradients over training, as finetune.mt --track logs them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from finetune.gradients.interference_measurement import Measured
from finetune.gradients.task_gradients import ALL_PARTS
from pretrain.engine.metrics_logger import METRICS, read_metrics
from shards.common.untrusted_input import check_fields

GRADIENTS_KIND = "gradients"  # of these lines of metrics.jsonl
DIGITS = 5  # significant digits of the numbers in a line


class PartRecord(msgspec.Struct):
    """The record of a part of the model, null for numbers that are not known.

    similarity: (B, T, T), see Measured.similarities; norm: (B, T).
    """

    similarity: list[list[list[float | None]]]
    norm: list[list[float | None]]


class TrackedLine(msgspec.Struct):
    """The fields of a line of the log that are read."""

    step: int
    tasks: list[str]
    seconds: float
    parts: dict[str, PartRecord]


@dataclass(frozen=True)
class Tracked:
    """R records of T tasks on B batches, which are the same in every record.

    steps: iterations before each record; seconds: that all records took; similarity: part of the model -> (R, B, T, T);
    norm: part -> (R, B, T).
    """

    steps: list[int]
    seconds: float
    similarity: dict[str, np.ndarray]
    norm: dict[str, np.ndarray]

    def over_training(self, part: str) -> np.ndarray:
        """(B, T, T): means over the records of the similarities of each batch; NaN where no record has one."""
        known = np.isfinite(self.similarity[part])
        with np.errstate(invalid="ignore"):
            return np.where(known, self.similarity[part], 0).sum(0) / known.sum(0)


def log_line(names: Sequence[str], measured: Measured, seconds: float) -> dict:
    """The values of a line of the log; TASK/norm and TASK/similarity, a task's mean with the others, are curves."""
    similarity, norm = (measured.similarities(ALL_PARTS).mean(0), measured.norms(ALL_PARTS).mean(0))
    np.fill_diagonal(similarity, 0)
    curves = {}
    for row, name in enumerate(names):
        curves[f"{name}/similarity"] = _rounded(similarity[row].sum() / max(len(names) - 1, 1))
        curves[f"{name}/norm"] = _rounded(norm[row])
    parts = {
        part: {"similarity": _rounded(measured.similarities(part)), "norm": _rounded(measured.norms(part))}
        for part in measured.parts
    }
    return curves | {"tasks": list(names), "loss": _rounded(measured.losses), "parts": parts, "seconds": seconds}


def read_tracked(run, names: Sequence[str]) -> Tracked | None:
    """The records of a run for some of its tasks, in this order; None if --track did not record them."""
    path = Path(run) / METRICS
    lines = read_metrics(path)[0] if path.exists() else []
    lines = [check_fields(line, TrackedLine, path) for line in lines if line["kind"] == GRADIENTS_KIND]
    lines = [line for line in lines if set(names) <= set(line["tasks"])]
    if not lines:
        return None
    rows = [lines[0]["tasks"].index(name) for name in names]

    def of_parts(what: str) -> dict[str, np.ndarray]:
        parts = lines[0]["parts"]
        return {part: np.array([line["parts"][part][what] for line in lines], float) for part in parts}

    return Tracked(
        steps=[line["step"] for line in lines],
        seconds=sum(line["seconds"] for line in lines),
        similarity={part: value[..., rows, :][..., rows] for part, value in of_parts("similarity").items()},
        norm={part: value[..., rows] for part, value in of_parts("norm").items()},
    )


def _rounded(values: np.ndarray | float):
    """Nested lists of numbers with DIGITS significant digits; None for one that is not finite."""
    if np.ndim(values):
        return [_rounded(value) for value in values]
    return float(f"{values:.{DIGITS}g}") if math.isfinite(values) else None
