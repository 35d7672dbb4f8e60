"""Evaluates a model on splits of tasks: predictions, scores, score files and submissions."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finetune.annotations.example import Example
from finetune.config import TESTS, EvaluateConfig
from finetune.data.regions import with_regions
from finetune.data.task_collate import TaskCollator
from finetune.evaluation.scores import TaskScore, breakdown_of, describe_scores, render_breakdown, score_task
from finetune.inference.kept_scores import KeptScores
from finetune.inference.model_loader import ModelLoader, OpenedTask
from finetune.inference.predictions import predict
from finetune.inference.progress import TimeLeft
from finetune.objective.task_pass import TaskPass
from finetune.prepared.packed_examples import PackedExamples
from finetune.run_dirs.run_data_folder import evaluations_folder, place_of
from finetune.task_types.base import FurtherScores, Task
from pretrain.engine.distributed import choose_device
from pretrain.engine.run_metadata import run_metadata
from shards.common.counted import counted
from shards.common.dist_info import ALONE, Ranks
from shards.common.errors import UserError
from shards.common.files import whole_file, write_json


@dataclass(frozen=True)
class Evaluated:
    """The score of a task on a split, with its examples and predictions."""

    examples: Sequence[Example]
    predictions: Sequence
    score: TaskScore


@dataclass(frozen=True)
class SplitScores:
    """All scores of a split.

    Attributes:
        score: the task's metrics.
        by: the main metric by further types, see `breakdown_of`.
        further: what the task knows of its further metrics, or None.
        further_scores: further metric -> value.
    """

    score: TaskScore
    by: dict[str, dict[str, dict[str, float]]]
    further: FurtherScores | None
    further_scores: dict[str, float]


def splits_of(task: Task, split: str | None) -> tuple[str, ...]:
    """The splits of a task that a value of --split names; none if it is TESTS and the task has no test."""
    if split == TESTS:
        return task.reported
    if split is not None:
        task.check_split(split)
    return (split or task.splits[1],)


def evaluate_tasks(
    config: EvaluateConfig, splits: Mapping[Task, Sequence[str]], ranks: Ranks
) -> dict[Task, dict[str, Evaluated]]:
    """Evaluates tasks on their splits. The result has those with public answers, and is empty on ranks but the first.

    Args:
        config: flags, with their data folder.
        splits: of every task.
        ranks: the processes.
    """
    loader, evaluated = ModelLoader(config, ranks), {}
    pairs = [(task, split) for task, of_task in splits.items() for split in of_task]
    for number, (task, split) in enumerate(pairs, 1):
        if len(pairs) > 1:
            ranks.log(f"{number} of {len(pairs)}: {task.title}, {split}")
        if found := evaluate_split(loader, task, split):
            evaluated.setdefault(task, {})[split] = found
    return evaluated


def scores_of_tasks(
    config: EvaluateConfig, splits: Mapping[Task, Sequence[str]], evaluated: dict[Task, dict[str, Evaluated]]
) -> dict[str, TaskScore]:
    """Task name -> score on its split, or the pooled score of several, which is printed and stored.

    Tasks have none if the answers of one of several splits are not public, and if they rank images, which they do in
    every split separately.

    Args:
        config, splits: as for `evaluate_tasks`.
        evaluated: its result.
    """
    scores: dict[str, TaskScore] = {}
    for task, parts in evaluated.items():
        if len(splits[task]) == 1:
            scores[task.name] = parts[splits[task][0]].score
        elif len(parts) == len(splits[task]) and not task.head.ranks_images:
            scores[task.name] = pool_splits(config, task, parts)
    return scores


def pooled_score(task: Task, parts: Sequence[Evaluated]) -> TaskScore:
    """The score on the pooled examples of several splits, each example with the same weight."""
    predictions = [prediction for part in parts for prediction in part.predictions]
    predictions = np.array(predictions) if isinstance(parts[0].predictions, np.ndarray) else predictions
    return score_task(task, [example for part in parts for example in part.examples], predictions)


def pool_splits(config: EvaluateConfig, task: Task, parts: dict[str, Evaluated]) -> TaskScore:
    """Prints and stores the pooled score of a task's test splits, as in table 9, and the mean of their scores."""
    pooled = pooled_score(task, list(parts.values()))
    splits = {split: part.score.metrics["score"] for split, part in parts.items()}
    mean = float(np.mean(list(splits.values())))
    names = " and ".join(splits)
    print(f"{task.title}, {names} pooled: {describe_scores(pooled.summary)}; mean of the splits {mean:.1%}")
    path = _scores_file(config, task, TESTS)
    stored = _metadata(config, task, TESTS) | {"splits": splits, "mean_of_splits": mean}
    write_json(path, stored | pooled.summary)
    print(f"scores: {path}")
    return pooled


def _scores_file(config: EvaluateConfig, task: Task, split: str) -> Path:
    return place_of(evaluations_folder(config.run), f"{task.name}-{split}.json", config.run, config.data)


def _metadata(config: EvaluateConfig, task: Task, split: str) -> dict:
    """Metadata of a score file: task, split, data folder, and software versions."""
    made = run_metadata(choose_device(config.device, ALONE))
    return {"task": task.name, "split": split, "data": os.path.abspath(config.data), "made": made}


def evaluate_split(loader: ModelLoader, task: Task, split: str) -> Evaluated | None:
    """Predicts a split; prints and stores its scores if its answers are public; writes the submission of --submission.

    Returns:
        None if its answers are not public, and on all ranks but the first.
    """
    config, ranks, opened = loader.config, loader.ranks, loader.open(task, split)
    examples = opened.collator.examples
    title = f"{task.title}, {split}{' (zero-shot)' if opened.source.zero_shot else ''}"
    public = task.is_public(examples)
    if not public:
        ranks.log(f"{title}: {counted(len(examples), 'example')} without public answers")
        if not config.submission:
            return None
    path = Path(config.scores or _scores_file(config, task, split))
    if public and ranks.first:
        _check_writable(path)
    kept = _kept_scores(config, split, path, opened, ranks)
    predictions = predict_split(config, split, opened.task_pass, opened.collator, ranks, kept)
    scores = _score_split(config, split, opened, predictions, ranks) if public else None
    if not ranks.first:
        return None
    if scores:
        _print_scores(title, scores)
        _store_scores(config, split, path, opened, scores)
    if config.submission:
        _write_submission(config.submission, task, examples, predictions)
    if kept:
        kept.remove()
    return Evaluated(examples, predictions, scores.score) if scores else None


def _score_split(
    config: EvaluateConfig, split: str, opened: OpenedTask, predictions, ranks: Ranks
) -> SplitScores | None:
    """The scores of predictions; None on all ranks but the first, which only predict the further examples."""
    task, examples = opened.task_pass.task, opened.collator.examples
    further = task.further_scores(task.folder(config.data), split, examples, predictions)
    further_scores = _score_further(config, split, further, opened, ranks) if further else {}
    if not ranks.first:
        return None
    score = score_task(task, examples, predictions)
    return SplitScores(score, breakdown_of(task, examples, score.values), further, further_scores)


def _print_scores(title: str, scores: SplitScores) -> None:
    print(f"{title}: {describe_scores(scores.score.summary)}")
    if scores.further and scores.further_scores:
        print(f"{title}: {scores.further.describe(scores.further_scores)}")
    if scores.further and scores.further.absent:
        print(scores.further.absent)
    for name, parts in scores.by.items():
        print(render_breakdown(f"by {name}", parts))


def _store_scores(config: EvaluateConfig, split: str, path: Path, opened: OpenedTask, scores: SplitScores) -> None:
    """Stores the scores of a split as JSON; they are marked if they are zero-shot or of a reranking."""
    task = opened.task_pass.task
    stored = _metadata(config, task, split)
    if opened.source.zero_shot:
        stored["zero_shot"] = True
    if config.rerank and task.head.ranks_images:
        stored["rerank"] = config.rerank
    stored |= scores.score.summary | scores.further_scores
    if scores.by:
        stored["by"] = scores.by
    write_json(path, stored)
    print(f"scores: {path}")


def _write_submission(path: str, task: Task, examples: Sequence[Example], predictions) -> None:
    with whole_file(path, "w", encoding="utf-8") as file:
        file.write(task.submission(examples, predictions))
    print(f"predictions: {path}")


def _check_writable(path: Path) -> None:
    """Raises UserError, before the predictions are made, if a score file cannot be written, as in a run of others."""
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: no permission to write the scores; give another place with --scores FILE")


def _kept_scores(
    config: EvaluateConfig, split: str, place: Path, opened: OpenedTask, ranks: Ranks
) -> KeptScores | None:
    """The scores of an interrupted ranking of all pairs of captions and images; None for other predictions."""
    task = opened.task_pass.task
    if not task.head.ranks_images or config.rerank:
        return None
    kept = KeptScores(place, opened.task_pass, opened.collator, config.batch_size, ranks)
    if kept.done:
        ranks.log(f"{task.title}, {split}: {len(kept.done)} blocks of images are kept from an earlier start")
    return kept


def predict_split(
    config: EvaluateConfig,
    split: str,
    task_pass: TaskPass,
    collator: TaskCollator,
    ranks: Ranks,
    kept: KeptScores | None = None,
):
    """The predictions for examples of a split, with logged progress. See `predict` for the arguments."""
    progress = TimeLeft(f"{task_pass.task.title}, {split}", ranks.log)
    return predict(task_pass, collator, config.batch_size, config.workers, ranks, progress, config.rerank, kept)


def _score_further(
    config: EvaluateConfig, split: str, further: FurtherScores, opened: OpenedTask, ranks: Ranks
) -> dict[str, float]:
    """The metrics that need further examples, which are predicted here."""
    if not further.examples:
        return further.scores({})
    _, task_pass, collator = opened
    ranks.log(f"{task_pass.task.title}, {split}: predicting {len(further.examples)} further examples for the metrics")
    where, skip = collator.regions.dataset.folder, config.missing == "skip"
    examples = with_regions(PackedExamples.of(further.examples), collator.regions, where, skip, ranks.log)
    predictions = predict_split(config, split, task_pass, replace(collator, examples=examples), ranks)
    return further.scores(dict(zip((example.id for example in examples), predictions, strict=True)))
