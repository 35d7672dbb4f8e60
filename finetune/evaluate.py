"""python -m finetune.evaluate --run RUN --task T --split S: official scores and submission files of a run."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finetune.config import WeightsFlags, answer_files, check_answer_files
from finetune.data.regions import with_regions
from finetune.data.serialized_examples import PackedExamples
from finetune.data.task_collate import TaskCollator
from finetune.data.task_data import TaskData, open_data, same_on_every_rank
from finetune.evaluation.scores import (
    TaskScore,
    breakdown_of,
    mean_score,
    render_breakdown,
    render_rows,
    score_task,
    table_row,
)
from finetune.inference.predictions import predict
from finetune.models.task_model import TaskModel
from finetune.objective.task_pass import TaskPass
from finetune.run_dirs.init_weights import Start, choose_vocabulary, read_tasks, trained_start
from finetune.run_dirs.run_data_folder import choose_data, kept_scores, place_of, warn_of_other_data
from finetune.task_types.base import Example, FurtherScores, Task
from finetune.tasks import GROUPS, choose_tasks, find_task
from finetune.tasks.retrieval import PLACES
from finetune.training.single_task import describe_scores
from pretrain.engine.distributed import choose_device, connected, exiting, on_every_rank
from pretrain.engine.metrics_logger import duration
from pretrain.engine.run_metadata import run_metadata
from pretrain.engine.step import Precision
from pretrain.pretrained.find_weights import RUN, describe
from shards.common.cli import command, flag
from shards.common.dist_info import ALONE, Ranks, launched
from shards.common.errors import UserError
from shards.common.files import whole_file, write_json

PAUSE = 5.0  # seconds between two progress lines
TESTS = "tests"  # value of --split for a task's test, which may be several splits; also the name of their pooled score


@dataclass(kw_only=True)
class EvaluateConfig(WeightsFlags):
    """Flags of finetune.evaluate."""

    task: str | None = flag(None, "comma-separated tasks or groups", unset="all tasks of the run")
    split: str | None = flag(
        None,
        "split to evaluate, or tests for the splits whose scores are reported",
        unset="the task's validation split",
    )
    submission: str | None = flag(
        None, "output file for the predictions of one task and split, in the official format", unset="not written"
    )
    scores: str | None = flag(
        None, "output file for the scores of one task and split, as JSON", unset="RUN/scores/TASK-SPLIT.json"
    )
    missing: str = flag("stop", "handling of examples whose image has no regions", choices=("stop", "skip"))
    regions: int | None = flag(None, "maximum number of regions per image", unset="the task's", low=1)
    rerank: int | None = flag(
        None,
        "retrieval with a contrastive head: score only this many of the most similar images per caption and captions "
        "per image with the whole model",
        unset="all pairs",
        low=max(PLACES),
    )
    batch_size: int = flag(256, "examples per batch", low=1)
    workers: int = flag(min(4, max(1, (os.cpu_count() or 1) // 2)), "data worker processes, 0 for none", low=0)


class TimeLeft:
    """Prints the progress of predictions and the estimated remaining time, every PAUSE seconds."""

    def __init__(self, title: str, log):
        self.title, self.log = title, log
        self.began = self.printed = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if done < total and now - self.printed >= PAUSE:
            self.printed = now
            left = (now - self.began) / done * (total - done)
            self.log(f"{self.title}: {done / total:.0%} done, {duration(left)} left")


@dataclass(frozen=True)
class Evaluated:
    """The score of a task on a split, with its examples and predictions."""

    examples: Sequence[Example]
    predictions: Sequence
    score: TaskScore


def load(config: EvaluateConfig, task: Task, choose=None, ranks: Ranks = ALONE) -> tuple[TaskPass, TaskCollator]:
    """The run's model on its device, and the collator of the examples; for the arguments see open_run."""
    return open_run(config, task, choose, ranks)[1:]


def open_run(
    config: EvaluateConfig, task: Task, choose=None, ranks: Ranks = ALONE
) -> tuple[Start, TaskPass, TaskCollator]:
    """Loads a run for inference on a task.

    Args:
        config: flags.
        task: the task.
        choose: function from the task's data to the examples; None for the examples of the split.
        ranks: the processes.

    Returns:
        (description of the weights, model on its device, collator of the examples).
    """
    device = choose_device(config.device, ranks)

    def opened() -> tuple[TaskData, Sequence[Example]]:
        data = open_data(task, choose_data(config.run, config.data), config.missing)
        return data, choose(data) if choose else data.examples(config.split or task.splits[1], ranks.log)

    data, examples = on_every_rank(ranks, opened)
    same_on_every_rank(data, (examples,), ranks)
    start = trained_start(config.run, config.config, config.tokenizer, data.feature_size)
    check_trained(start, task)
    vocabulary = None
    if hasattr(task, "vocabulary"):
        file = answer_files(config).get(task.head)
        vocabulary = start.vocabularies.get(task.head) or choose_vocabulary(start, data, file)
    model = TaskModel(start.sizes, {task.head: len(vocabulary)} if vocabulary else {})
    sentence = describe(*start.load(model))
    if start.weights.kind != RUN:
        ranks.log(f"{config.run}: {sentence}")
    precision = Precision(config.precision, device)
    model.to(device, precision.weights)
    positions = start.sizes.max_position_embeddings
    collator = data.collator(examples, start.tokenizer, vocabulary, positions, config.regions)
    return start, TaskPass(model, task, precision, start.token(task)), collator


def check_trained(start: Start, task: Task) -> None:
    """Raises UserError if the head of the task was not trained."""
    if start.has_head(task):
        return
    names = ", ".join(known.name for known in start.tasks)
    what = f"was trained on {names}" if names else "has no task heads"
    if start.zero_shot:
        what = f"contains pretraining weights, which only support {names} (zero-shot, by the alignment head)"
    raise UserError(f"--run {start.path or 'scratch'}: {what}; fine-tune it on {task.name} first")


def run(config: EvaluateConfig) -> None:
    """Predicts, scores splits with public answers, and writes scores and submissions."""
    ranks = launched()
    if ranks.first:
        warn_of_other_data(config.run, config.data)
    config = replace(config, data=choose_data(config.run, config.data))
    tasks = choose_tasks(config.task, "--task") if config.task else read_tasks(config.run)
    check_answer_files(config, tasks)
    if config.rerank and all(task.head != "retrieval" for task in tasks):
        raise UserError(f"--rerank {config.rerank}: is of retrieval, and none of the tasks is; leave it out")
    asked = [(task, split) for task in tasks for split in _splits(task, config.split)]
    splits_of = {task.name: [split for of, split in asked if of is task] for task, _ in asked}
    if not asked:
        raise UserError(f"--split {TESTS}: {tasks[0].name} has no test split; it has {', '.join(tasks[0].splits)}")
    for name in ("submission", "scores"):
        if len(asked) > 1 and (path := getattr(config, name)):
            raise UserError(f"--{name} {path}: needs a single --task and --split; {len(asked)} were given")
    scored: dict[str, dict[str, Evaluated]] = {}
    with connected(ranks, choose_device(config.device, ranks)):
        for number, (task, split) in enumerate(asked, 1):
            if len(asked) > 1:
                ranks.log(f"{number} of {len(asked)}: {task.title}, {split}")
            if evaluated := _evaluate(replace(config, split=split), task, ranks):
                scored.setdefault(task.name, {})[split] = evaluated
    if not ranks.first:
        return
    scores: dict[str, TaskScore] = {}
    for name, parts in scored.items():
        if len(splits_of[name]) == 1:
            scores[name] = parts[splits_of[name][0]].score
        elif len(parts) == len(splits_of[name]) and find_task(name).head != "retrieval":  # retrieval ranks per split
            scores[name] = _pool(config, find_task(name), parts)
    if len(asked) == 1 and not scored and not config.submission:
        raise UserError(f"--split {asked[0][1]}: no public answers; --submission FILE writes the predictions")
    papers = {name: score for name, score in scores.items() if score.group in GROUPS}
    if len(splits_of) == len(scores) and len(papers) > 1:
        mean, (low, high) = mean_score(papers)
        print(f"mean of {len(papers)} tasks: {mean:.1%} ({low:.1%} to {high:.1%})")
        print(render_rows({config.run: table_row({name: score.metrics for name, score in papers.items()})}))


def _splits(task: Task, asked: str | None) -> tuple[str, ...]:
    """The splits of a task that a value of --split stands for."""
    if asked == TESTS:
        return task.reported
    if asked is not None:
        task.check_split(asked)
    return (asked or task.splits[1],)


def pooled_score(task: Task, parts: Sequence[Evaluated]) -> TaskScore:
    """The score on the pooled examples of several splits, each example with the same weight."""
    predictions = [prediction for part in parts for prediction in part.predictions]
    predictions = np.array(predictions) if isinstance(parts[0].predictions, np.ndarray) else predictions
    return score_task(task, [example for part in parts for example in part.examples], predictions)


def _pool(config: EvaluateConfig, task: Task, parts: dict[str, Evaluated]) -> TaskScore:
    """Prints and stores the pooled score of a task's test splits, as in table 9, and the mean of their scores."""
    pooled = pooled_score(task, list(parts.values()))
    splits = {split: part.score.metrics["score"] for split, part in parts.items()}
    mean = float(np.mean(list(splits.values())))
    names = " and ".join(splits)
    print(f"{task.title}, {names} pooled: {describe_scores(pooled.summary)}; mean of the splits {mean:.1%}")
    path = _scores_file(config, task, TESTS)
    facts = _facts(config, task, TESTS) | {"splits": splits, "mean_of_splits": mean}
    write_json(path, facts | pooled.summary)
    print(f"scores: {path}")
    return pooled


def _scores_file(config: EvaluateConfig, task: Task, split: str) -> Path:
    return place_of(kept_scores(config.run), f"{task.name}-{split}.json", config.run, config.data)


def _facts(config: EvaluateConfig, task: Task, split: str) -> dict:
    """Metadata of a score file: task, split, data folder, and software versions."""
    made = run_metadata(choose_device(config.device, ALONE))
    return {"task": task.name, "split": split, "data": os.path.abspath(config.data), "made": made}


def _evaluate(config: EvaluateConfig, task: Task, ranks: Ranks) -> Evaluated | None:
    """Evaluates a task on a split; None if its answers are not public, and on all ranks but the first."""
    start, work, collator = open_run(config, task, ranks=ranks)
    mark = {"zero_shot": True} if start.zero_shot else {}
    if config.rerank and task.head == "retrieval":
        mark["rerank"] = config.rerank
    title = f"{task.title}, {config.split}{' (zero-shot)' if start.zero_shot else ''}"
    examples, score = collator.examples, None
    public = task.head == "retrieval" or all(example.target is not None for example in examples)
    if not public:
        ranks.log(f"{title}: {len(examples)} examples without public answers")
        if not config.submission:
            return None
    predictions = _predict(config, work, collator, ranks)
    further = task.further_scores(task.folder(config.data), config.split, examples, predictions) if public else None
    further_scores = _score_further(config, further, work, collator, ranks) if further else {}
    if not ranks.first:
        return None
    if public:
        score = score_task(task, examples, predictions)
        by = breakdown_of(task, examples, score.values)
        print(f"{title}: {describe_scores(score.summary)}")
        if further_scores:
            print(f"{title}: {further.describe(further_scores)}")
        if further and further.absent:
            print(further.absent)
        for name, parts in by.items():
            print(render_breakdown(f"by {name}", parts))
        path = Path(config.scores or _scores_file(config, task, config.split))
        stored = _facts(config, task, config.split) | mark | score.summary | further_scores
        write_json(path, stored | ({"by": by} if by else {}))
        print(f"scores: {path}")
    if config.submission:
        with whole_file(config.submission, "w", encoding="utf-8") as file:
            file.write(task.submission(examples, predictions))
        print(f"predictions: {config.submission}")
    return Evaluated(examples, predictions, score) if score else None


def _predict(config: EvaluateConfig, work: TaskPass, collator: TaskCollator, ranks: Ranks):
    progress = TimeLeft(f"{work.task.title}, {config.split}", ranks.log)
    device = work.precision.device
    return predict(work, collator, config.batch_size, config.workers, ranks, device, progress, config.rerank)


def _score_further(
    config: EvaluateConfig, further: FurtherScores, work: TaskPass, collator: TaskCollator, ranks: Ranks
) -> dict[str, float]:
    """The metrics that need further examples, which are predicted here."""
    if not further.examples:
        return further.scores({})
    ranks.log(f"{work.task.title}, {config.split}: predicting {len(further.examples)} further examples for the metrics")
    where, skip = collator.regions.dataset.folder, config.missing == "skip"
    examples = PackedExamples(with_regions(further.examples, collator.regions, where, skip, ranks.log))
    predictions = _predict(config, work, replace(collator, examples=examples), ranks)
    return further.scores(dict(zip((example.id for example in examples), predictions, strict=True)))


if __name__ == "__main__":
    with exiting():
        command(EvaluateConfig, run, "finetune.evaluate", "Official scores and submission files of a run.")
