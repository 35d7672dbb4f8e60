"""Scores of many tasks: group means, the MT score, and the layout of the paper's table 10."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.annotations.example import Example
from finetune.evaluation.bootstrap import bootstrap_means, clusters_of, interval_of
from finetune.task_types.base import Task
from finetune.tasks import GROUPS, all_tasks
from shards.common.counted import counted
from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.common.untrusted_input import AGAIN, read_arrays

FOUR_WAY = "four_way_accuracy"  # retrieval metric for stop-and-go and checkpoint selection
RANKED_IMAGES = 1000  # images that the paper's retrieval scores rank, on COCO and on Flickr30k
CLUSTERS = "clusters/"  # prefix of the keys of clusters in stored values

# Columns of tables 10 to 12: (task, metric), or a group for the mean of its tasks.
COLUMNS = {
    "VQA": ("vqa", "score"),
    "VGQA": ("vgqa", "score"),
    "GQA": ("gqa", "score"),
    "Mean G1": "G1",
    "RC R@1": ("coco_retrieval", "R@1"),
    "RC R@5": ("coco_retrieval", "R@5"),
    "RC R@10": ("coco_retrieval", "R@10"),
    "RF R@1": ("flickr_retrieval", "R@1"),
    "RF R@5": ("flickr_retrieval", "R@5"),
    "RF R@10": ("flickr_retrieval", "R@10"),
    "Mean G2": "G2",
    "RefCOCO": ("refcoco", "score"),
    "RefCOCO+": ("refcoco+", "score"),
    "RefCOCOg": ("refcocog", "score"),
    "Visual7W": ("visual7w", "score"),
    "GuessWhat": ("guesswhat", "score"),
    "Mean G3": "G3",
    "NLVR2": ("nlvr2", "score"),
    "SNLI-VE": ("snli_ve", "score"),
    "Mean G4": "G4",
    "MT Score": "all",
}


@dataclass
class TaskScore:
    """A task's metrics, with a bootstrap distribution of the main one.

    Attributes:
        group: the task's group.
        metrics: name -> mean, between 0 and 1, `score` being the main one, and the number of `examples`.
        values: float (examples,), the main metric of each example.
        clusters: int (examples,), number of the cluster of each example; examples of the same image are one cluster.
        draws: float (draws,), means of the main metric over bootstrap samples of the clusters.
    """

    group: str
    metrics: dict[str, float]
    values: np.ndarray
    clusters: np.ndarray
    draws: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the main metric, between 0 and 1."""
        return interval_of(self.draws)

    @property
    def summary(self) -> dict[str, Any]:
        """The metrics with the main one's 95% interval, as written to result files."""
        return self.metrics | {"interval": self.interval}


def selection_score(metrics: dict[str, float]) -> float:
    """The score for stop-and-go and checkpoint selection: the main metric; for retrieval 4-way accuracy (see
    finetune/training/task_validation.py)."""
    return metrics.get(FOUR_WAY, metrics["score"])


def score_task(task: Task, examples: Sequence[Example], predictions: Sequence[Any] | np.ndarray) -> TaskScore:
    """The metrics of a task's predictions as means, with bootstrap samples of the main one.

    Args:
        task: the task.
        examples: of one split, with public answers.
        predictions: one per example, as Task.scores takes them.

    Raises:
        ValueError: the task's main metric does not have one value per example.
    """
    values = task.scores(examples, predictions)
    means = {name: float(np.mean(value)) for name, value in values.items() if len(value)}
    main = next(iter(means))
    metrics = {"score": means[main]} | means | {"examples": len(examples)}
    if task.head.ranks_images:
        metrics["images"] = len({example.images for example in examples})
    if len(values[main]) != len(examples):
        raise ValueError(f"{task.name}: {main} has {len(values[main])} values for {len(examples)} examples")
    clusters = clusters_of(example.images for example in examples)
    draws = bootstrap_means(values[main], clusters, seed=task.token)  # tasks are resampled independently
    return TaskScore(task.group, metrics, values[main], clusters, draws)


def breakdown_of(task: Task, examples: Sequence[Example], values: np.ndarray) -> dict[str, dict[str, dict[str, float]]]:
    """The main metric by the types of `Task.breakdown`: title -> type -> its score and number of examples."""
    return {
        title: {name: {"score": float(part.mean()), "examples": len(part)} for name, part in parts.items()}
        for title, parts in task.breakdown(examples, values).items()
    }


def render_breakdown(title: str, parts: dict[str, dict[str, float]]) -> str:
    """A breakdown as text, one line per type: its score in percent and its number of examples."""
    width = max(len(title), *map(len, parts))
    lines = [f"{title:<{width}}  {'score':>7}  examples"]
    lines += [f"{name:<{width}}  {100 * of['score']:>7.2f}  {of['examples']:>8}" for name, of in parts.items()]
    return "\n".join(lines)


def save_values(path: str | Path, scores: dict[str, TaskScore]) -> None:
    """Saves the main metric and the cluster of every example of every task, for paired comparisons of runs."""
    arrays: dict[str, Any] = {name: score.values for name, score in scores.items()}
    arrays |= {f"{CLUSTERS}{name}": score.clusters for name, score in scores.items()}
    with whole_file(path) as file:
        np.savez(file, **arrays)


def load_values(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray | None]]:
    """(values, clusters) by task from a file of `save_values`; clusters are None in files of earlier versions."""
    kept = read_arrays(path)
    values = {name: of for name, of in kept.items() if not name.startswith(CLUSTERS)}
    clusters = {name: kept.get(f"{CLUSTERS}{name}") for name in values}
    for name, of in values.items():
        if of.ndim != 1 or of.dtype.kind not in "biuf" or not np.isfinite(of).all():
            raise UserError(f"{path}: {name} should be one finite number per example; {AGAIN}")
        own = clusters[name]
        if own is not None and (own.shape != of.shape or own.dtype.kind not in "iu"):
            raise UserError(f"{path}: {name} has a different number of clusters and examples; {AGAIN}")
    if missing := [name for name, of in clusters.items() if of is None]:
        warnings.warn(
            f"{path}: no image clusters of {', '.join(missing)} (written by an earlier version); intervals are over "
            "examples and too narrow",
            stacklevel=2,
        )
    return values, clusters


def mean_score(scores: dict[str, TaskScore], group: str = "all") -> tuple[float, tuple[float, float]]:
    """(mean over a group's tasks, its 95% interval); for group "all" the MT score, the mean over the paper's tasks.

    If none of the tasks belongs to the group, the mean is over all tasks.
    """
    own = GROUPS if group == "all" else (group,)
    of = [score for score in scores.values() if score.group in own] or list(scores.values())
    return float(np.mean([s.metrics["score"] for s in of])), interval_of(np.mean([s.draws for s in of], 0))


def table_row(metrics: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """Columns of table 10 in percent, from the metrics of tasks; None for a missing task or group."""
    groups = {name: task.group for name, task in all_tasks().items()}
    row = {}
    for column, place in COLUMNS.items():
        if isinstance(place, tuple):
            task, metric = place
            values = [metrics[task][metric]] if task in metrics else []
        else:
            own = GROUPS if place == "all" else (place,)
            values = [of["score"] for name, of in metrics.items() if groups[name] in own]
        row[column] = 100 * float(np.mean(values)) if values else None
    return row


def mean_row(runs: list[dict[str, dict[str, float]]]) -> dict[str, float | None]:
    """`table_row`, averaged over runs of the same tasks."""
    rows = [table_row(metrics) for metrics in runs]
    return {c: v if v is None else float(np.mean([row[c] for row in rows])) for c, v in rows[0].items()}


def ranking_note(*runs: dict[str, dict[str, float]]) -> str:
    """A note on R@k that ranks another number of images than in the paper, else "".

    Args:
        runs: per run, the metrics of its tasks by name. Runs of earlier versions lack the number of images.
    """
    ranked = {
        f"{of['images']:,} images of {all_tasks()[name].title}": None
        for metrics in runs
        for name, of in metrics.items()
        if of.get("images", RANKED_IMAGES) != RANKED_IMAGES
    }
    if not ranked:
        return ""
    return f"R@k ranks {', '.join(ranked)}; in the paper it ranks {RANKED_IMAGES:,}; it is higher with fewer images"


def render_rows(rows: dict[str, dict[str, float | None]]) -> str:
    """Rows with the columns of table 10 as text, one line per row; columns without any value are omitted."""
    columns = [column for column in COLUMNS if any(row.get(column) is not None for row in rows.values())]
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"  {column:>8}" for column in columns)]
    for name, row in rows.items():
        cells = (f"{row[c]:.2f}" if row.get(c) is not None else "" for c in columns)
        lines.append(name.ljust(width) + "".join(f"  {cell:>8}" for cell in cells))
    return "\n".join(lines)


def describe_scores(scores: dict[str, Any]) -> str:
    """Every metric in percent, the main one with its interval, and the number of examples.

    R@k that ranks another number of images than in the paper is marked.
    """
    low, high = scores["interval"]
    names = [name for name in scores if name not in ("score", "examples", "interval", "images", FOUR_WAY)]
    main, *others = (f"{name} {scores[name]:.1%}" for name in names)
    text = f"{', '.join([f'{main} ({low:.1%} to {high:.1%})', *others])}, on {counted(scores['examples'], 'example')}"
    if scores.get("images", RANKED_IMAGES) != RANKED_IMAGES:
        text += f" (among {scores['images']:,} images; in the paper {RANKED_IMAGES:,})"
    return text + (f"; 4-way accuracy {scores[FOUR_WAY]:.1%}" if FOUR_WAY in scores else "")
