"""The summary of a measurement of interference: means, intervals and orders of the tasks, as JSON and as text."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.config import InterferenceConfig
from finetune.gradients.interference_measurement import Measured, clustered_order, mean_and_margin
from finetune.gradients.task_gradients import ALL_PARTS
from finetune.gradients.task_groups import propose_groups
from finetune.gradients.tracked_gradients import Tracked
from finetune.task_types.base import Task
from pretrain.engine.distributed import choose_device
from pretrain.engine.run_metadata import run_metadata
from shards.common.dist_info import ALONE
from shards.common.files import whole_file, write_json

SHOWN = 5  # pairs at each end, in the text


def summarise(
    config: InterferenceConfig, tasks: Sequence[Task], measured: Measured, tracked: Tracked | None, seconds: float
) -> dict:
    """The content of interference.json; see docs/interference.md. A number that is not known is None.

    Args:
        config: flags.
        tasks: the tasks that were measured.
        measured: at the weights of the run.
        tracked: during its training, None if it was not.
        seconds: that the measurement took.
    """

    def table(values: np.ndarray) -> dict:
        mean, margin = mean_and_margin(values)
        return {"mean": _plain(mean), "margin": _plain(margin)}

    parts = {
        part: {
            "similarity": table(measured.similarities(part)),
            "expected_similarity": _plain(measured.expected_similarity(part)),
            "norm": table(measured.norms(part)),
        }
        for part in measured.parts
    }
    names = [task.name for task in tasks]
    affinity = mean_and_margin(measured.affinities() if len(measured.before) else measured.similarities(ALL_PARTS))[0]
    flags = ("clean", "batches", "batch_size", "look_ahead", "step", "max_sets", "seed", "precision")
    return {
        "run": config.run,
        "data": os.path.abspath(config.data),
        "tasks": names,
        "titles": [task.title for task in tasks],
        "groups": [task.group for task in tasks],
        "clustered": clustered_order(mean_and_margin(measured.similarities(ALL_PARTS))[0]),
        "parts": parts,
        "sets": [[names[task] for task in members] for members in propose_groups(affinity, config.max_sets)],
        "loss": table(measured.losses),
        "affinity": table(measured.affinities()) if len(measured.before) else None,
        "tracked": None
        if tracked is None
        else {
            "steps": tracked.steps,
            "seconds": tracked.seconds,
            "parts": {
                part: {"similarity": table(tracked.over_training(part)), "norm": table(tracked.norm[part].mean(0))}
                for part in tracked.similarity
            },
        },
        "flags": {name: getattr(config, name) for name in flags},
        "seconds": round(seconds, 1),
        "made": run_metadata(choose_device(config.device, ALONE)),
    }


def write_measurements(numbers: Path, arrays: Path, summary: dict, measured: Measured) -> None:
    """Writes the summary, and the measurements of every batch as arrays of their names in Measured."""
    with whole_file(arrays) as file:
        np.savez(
            file,
            losses=measured.losses,
            before=measured.before,
            after=measured.after,
            **{f"products/{part}": values for part, values in measured.products.items()},
            **{f"repeated/{part}": values for part, values in measured.repeated.items()},
        )
    write_json(numbers, summary)


def render_summary(summary: dict) -> str:
    """The most and the least similar pairs, and the strongest effects of a step, as text."""
    titles, lines = summary["titles"], []
    similar = _pairs(summary["parts"][ALL_PARTS]["similarity"], directed=False)
    lines.append("cosine similarity of the gradients of two tasks, with 95% intervals")
    lines += [f"  {titles[i]} and {titles[j]}: {_shown(*value)}" for i, j, *value in _ends(similar)]
    if summary["affinity"]:
        lines.append("relative decrease of a task's loss by a step of another task, with 95% intervals")
        affinities = _pairs(summary["affinity"], directed=True)
        lines += [f"  {titles[i]} on {titles[j]}: {_shown(*value, '%')}" for i, j, *value in _ends(affinities)]
    if summary["tracked"]:
        steps, took = summary["tracked"]["steps"], summary["tracked"]["seconds"]
        lines.append(f"{len(steps)} records of --track, after iterations {steps[0]} to {steps[-1]}, took {took:.1f} s")
    lines.append(f"proposed sets of tasks, at most {summary['flags']['max_sets']}, by {_measure(summary)}")
    lines += [f"  python -m finetune.mt --tasks {','.join(members)}" for members in summary["sets"]]
    return "\n".join(lines)


def _measure(summary: dict) -> str:
    """What the proposed sets are based on."""
    return "the mean affinity of the others on each task" if summary["affinity"] else "the mean similarity of gradients"


def _pairs(table: dict, directed: bool) -> list[tuple[int, int, float, float | None]]:
    """(task, other task, mean, margin) of all pairs with a mean, the largest mean first."""
    count = len(table["mean"])
    pairs = [(i, j) for i in range(count) for j in range(count) if (i != j if directed else i < j)]
    found = [(i, j, table["mean"][i][j], table["margin"][i][j]) for i, j in pairs]
    return sorted((pair for pair in found if pair[2] is not None), key=lambda pair: -pair[2])


def _ends(pairs: list) -> list:
    return pairs if len(pairs) <= 2 * SHOWN else pairs[:SHOWN] + pairs[-SHOWN:]


def _shown(mean: float, margin: float | None, unit: str = "") -> str:
    factor, digits = (100, 2) if unit else (1, 3)
    text = f"{factor * mean:+.{digits}f}{unit}"
    return text if margin is None else f"{text} ± {factor * margin:.{digits}f}"


def _plain(values: np.ndarray):
    """Nested lists of floats, None for a number that is not finite."""
    if values.ndim:
        return [_plain(value) for value in values]
    return float(values) if math.isfinite(values) else None
